"""A request that is cut short at any of its calls goes on there, anywhere, with the bits of an undisturbed one."""

import dataclasses
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig

import runner.calls.replay as replay
from runner.calls.randomness import global_seed
from runner.calls.replay import Resume, StoppedInside
from runner.config import load_config
from runner.output.call_log import CallLog, count_records
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from runner.world import World
from tests import tiny

ALONE = World(0, 1, torch.device("cpu"))
SEED = 7
# The family, the scheduler (None: its own) and its settings over those of the directory. * draws random numbers.
COMBINATIONS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "flux": ("flux", None, {}),
    "flux *": ("flux", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "sd3 heun": ("sd3", "FlowMatchHeunDiscreteScheduler", {}),
    "sd3": ("sd3", None, {}),
    "sd3 *": ("sd3", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "qwenimage": ("qwenimage", None, {}),
    "qwenimage *": ("qwenimage", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "wan unipc": ("wan", None, {}),
    "wan sde *": ("wan", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_flow_sigmas": True}),
    "wan22 two DiTs": ("wan22", None, {}),
    "pixart dpm++ 3": ("pixart", "DPMSolverMultistepScheduler", {"solver_order": 3}),
    "pixart ancestral *": ("pixart", "EulerAncestralDiscreteScheduler", {}),
    "pixart heun": ("pixart", "HeunDiscreteScheduler", {}),
    "pixart kdpm2 *": ("pixart", "KDPM2AncestralDiscreteScheduler", {}),
    "pixart deis": ("pixart", "DEISMultistepScheduler", {}),
    "dit ddim": ("dit", None, {}),
    "dit ddpm *": ("dit", "DDPMScheduler", {}),
    "hunyuanvideo": ("hunyuanvideo", None, {}),
    "ltx": ("ltx", None, {}),
    "sana": ("sana", None, {}),
}
PLACEMENTS = {
    "device": [],
    "host": ["placement.default.rest=host"],
    "disk": ["placement.default.rest=disk", "execution.leave_inference=weights"],
    "sharded": ["placement.default.share=shard"],
    "sharded, host": ["placement.transformer.share=shard", "placement.transformer.rest=host"],
}


def with_scheduler(combination: str, pipeline: Any) -> Any:
    _, name, settings = COMBINATIONS[combination]
    if name is not None:
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **settings)
    return pipeline


def request_of(family: str, **differs: Any) -> Request:
    described = tiny.FAMILIES[family]
    prompt = described.prompts[1]
    text = prompt[0] if isinstance(prompt, list) else prompt
    return Request(text, SEED, {**described.call, "num_inference_steps": 4, **differs}, output_type="np")


def stock_bits(combination: str, path: Path) -> torch.Tensor:
    """The stock pipeline, its global generators set as the runner does."""
    family = COMBINATIONS[combination][0]
    described = dataclasses.replace(tiny.FAMILIES[family], call=request_of(family).call)
    stock = with_scheduler(combination, tiny.load_stock(path))
    torch.manual_seed(global_seed(SEED))
    np.random.seed(global_seed(SEED) % 2**32)
    random.seed(global_seed(SEED))
    return torch.as_tensor(tiny.call_stock(stock, described, described.prompts[1], SEED, output_type="np")[0])


class Bench:
    """One pipeline, and logs in one folder."""

    def __init__(self, path: Path, folder: Path, *overrides: str) -> None:
        self.pipeline = open_pipeline(load_config(None, [f"model.path={path}", *overrides]), ALONE)
        self.pipeline.log_calls()
        self.folder, self.said = folder, list[str]()

    def log(self, name: str, *, writes: bool = True) -> CallLog:
        return CallLog(self.folder / f"{name}.log", {"request": "x"}, writes=writes, say=self.said.append)

    def make(self, request: Request, name: str, **how: Any) -> tuple[torch.Tensor, int]:
        """The picture, and how many of the denoiser's calls were computed."""
        before = self.computed
        made = self.pipeline(request, Resume(self.log(name), how.pop("time_left", lambda: None), **how))
        return torch.as_tensor(made), self.computed - before

    @property
    def computed(self) -> int:
        return self.pipeline.timings.calls.get("denoise", 0)

    def records(self, name: str) -> int:
        return count_records(self.folder / f"{name}.log")

    def cut(self, name: str, records: int, torn: int = 0) -> str:
        """The log as a kill after so many calls, and some bytes of the next, leaves it."""
        whole = (self.folder / f"{name}.log").read_bytes()
        ends = [found.start() for found in re.finditer(rb"call[\x00-\xff]{20}\{\"call\": ", whole)] + [len(whole)]
        (self.folder / "cut.log").write_bytes(whole[: min(ends[records] + torn, len(whole))])
        return "cut"


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_killed_at_every_call_it_goes_on_with_the_stock_bits(
    combination: str, tiny_root: Path, tmp_path: Path
) -> None:
    """Each kill leaves a torn record besides; then the request is killed once more, two calls on."""
    family = COMBINATIONS[combination][0]
    path = tiny.build(family, tiny_root)
    expected, request = stock_bits(combination, path), request_of(family)
    bench = Bench(path, tmp_path)
    with_scheduler(combination, bench.pipeline.stock)
    made, calls = bench.make(request, "whole")
    assert torch.equal(made, expected) and calls >= 4
    assert bench.records("whole") == calls, bench.said
    for killed_at in range(calls + 1):
        name = bench.cut("whole", killed_at, torn=100)
        made, computed = bench.make(request, name)
        assert torch.equal(made, expected), killed_at
        assert computed == calls - killed_at and bench.records(name) == calls
        again = bench.cut(name, min(killed_at + 2, calls))
        made, computed = bench.make(request, again)
        assert torch.equal(made, expected) and computed == max(calls - killed_at - 2, 0)
    assert not bench.said
