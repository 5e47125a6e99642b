"""What the tests of resuming inside a request share: requests with a log, and logs as a kill leaves them."""

import dataclasses
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from runner.calls.randomness import global_seed
from runner.output.call_log import CallLog, count_records
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from runner.resume.replay import Resume
from tests import tiny

SEED = 7
# The family, the scheduler (None: its own) and its settings over those of the directory. * draws random numbers.
COMBINATIONS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "flux": ("flux", None, {}),
    "flux *": ("flux", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "sd3": ("sd3", None, {}),
    "sd3 *": ("sd3", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "sd3 heun": ("sd3", "FlowMatchHeunDiscreteScheduler", {}),
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


def with_scheduler(combination: str, stock: Any) -> Any:
    _, name, settings = COMBINATIONS[combination]
    if name is not None:
        stock.scheduler = getattr(diffusers, name).from_config(stock.scheduler.config, **settings)
    return stock


def request_of(family: str, index: int = 1, **differs: Any) -> Request:
    described = tiny.FAMILIES[family]
    prompt = described.prompts[index]
    text = prompt[0] if isinstance(prompt, list) else prompt
    call = {**described.call, "num_inference_steps": 4, **differs}
    return Request(text, SEED, call, output_type="np")


def stock_bits(combination: str, path: Path, index: int = 1) -> torch.Tensor:
    """By the stock pipeline, its global generators set as the runner does."""
    family = COMBINATIONS[combination][0]
    described = dataclasses.replace(tiny.FAMILIES[family], call=request_of(family).call)
    stock = with_scheduler(combination, tiny.load_stock(path))
    torch.manual_seed(global_seed(SEED))
    np.random.seed(global_seed(SEED) % 2**32)
    random.seed(global_seed(SEED))
    return torch.as_tensor(tiny.call_stock(stock, described, described.prompts[index], SEED, output_type="np")[0])


class Bench:
    """A pipeline, and the logs of its requests in a folder, by name."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self.pipeline, self.folder, self.said = pipeline, folder, list[str]()
        pipeline.log_calls()

    def resume(
        self,
        name: str,
        *,
        writes: bool = True,
        time_left: Callable[[], float | None] = lambda: None,
        always: bool = True,
    ) -> Resume:
        log = CallLog(self.folder / f"{name}.log", {"request": "x"}, writes=writes, say=self.said.append)
        return Resume(log, time_left, always)

    def make(self, request: Request, name: str, **how: Any) -> tuple[torch.Tensor, int]:
        """The picture, and how many of the denoiser's calls were computed."""
        before = self.computed
        made = self.pipeline(request, self.resume(name, **how))[0][0]
        return torch.as_tensor(made), self.computed - before

    @property
    def computed(self) -> int:
        return self.pipeline.recorder.calls("denoise")

    def records(self, name: str) -> int:
        return count_records(self.folder / f"{name}.log")

    def cut(self, name: str, records: int, torn: int = 0, *, zeros: int = 0, to: str = "cut") -> str:
        """The log as a kill after so many calls, and some bytes of the next, leaves it. `zeros`: as a power loss does,
        where the file's length was on the disk and its last pages were not."""
        whole = (self.folder / f"{name}.log").read_bytes()
        ends = [found.start() for found in re.finditer(rb"call[\x00-\xff]{20}\{\"call\": ", whole)] + [len(whole)]
        (self.folder / f"{to}.log").write_bytes(whole[: min(ends[records] + torn, len(whole))] + bytes(zeros))
        return to
