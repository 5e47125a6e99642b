"""What the multi-rank placement tests share: pipelines opened on the ranks of a test world, and the stock bits."""

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from diffusers import ModularPipeline
from torch import nn

from runner.components.resolver import ExecutionMode, resolve
from runner.components.stages import components_of
from runner.config import Format, JobConfig, Leave, load_config
from runner.health.last_line import LastLine
from runner.health.stop import StopFile
from runner.health.watch import Limits, watching
from runner.job.job import run_job
from runner.job.prompts import Prompt
from runner.job.requests import requests_of
from runner.job.results import Settled
from runner.output.job_folder import taken
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from runner.world import World
from tests import tiny
from tests.ranks import ORACLE_DEVICE
from tests.ranks import World as TestWorld


@functools.cache
def _control() -> dist.ProcessGroup:
    """Of a world that torchrun started."""
    return dist.new_group(backend="gloo")


def joined(world: TestWorld) -> World:
    """The test's ranks as the runner's world, each a team of its own."""
    return World(world.rank, world.size, world.device, world.control or _control())


def opened(world: TestWorld, path: Path, *overrides: str) -> Pipeline:
    config = load_config(None, [f"model.path={path}", *overrides])
    return open_pipeline(config, joined(world).in_teams(config.mesh.guidance, config.mesh.context))


def component_names(family: str, path: Path, placed: str) -> list[str]:
    """The components of `placed`: "denoise" or another stage, or "all"."""
    pipeline = stock_of(path)
    return [c.name for c in components_of(pipeline) if placed in (c.stage, "all")]


def call(pipeline: Pipeline, family: str, index: int, output_type: str = "np") -> torch.Tensor:
    """The family's request number `index`, made by the runner."""
    return torch.as_tensor(pipeline(request_of(family, index, output_type))[0][0])


def request_of(family: str, index: int, output_type: str = "np", **differs: Any) -> Request:
    """Its seed is its number; the prompts are said again after the last one."""
    described = family_of(family)
    prompt = described.prompts[index % len(described.prompts)]
    text = prompt[0] if isinstance(prompt, list) else prompt
    return Request(text, index, {**described.call, **differs}, output_type=output_type)


def family_of(name: str) -> tiny.TinyPipeline:
    """Also one of a modular pipeline."""
    return {**tiny.FAMILIES, **tiny.MODULAR}[name]


def call_together(pipeline: Pipeline, requests: Sequence[Request]) -> list[torch.Tensor]:
    """The pictures of requests that are made together."""
    made: dict[int, torch.Tensor] = {}

    def ended(index: int, outcome: Callable[[], Any], seconds: float) -> None:
        made[index] = torch.as_tensor(outcome()[0][0])

    pipeline.make_together(requests, [None] * len(requests), ended)
    return [made[index] for index in range(len(requests))]


def expect_stock_bits_together(pipeline: Pipeline, family: str, path: Path, first: int, numbers: Sequence[int]) -> None:
    """Of groups of so many requests, from `first` on, in the weights scope and in the component scope."""
    decisions = {leave: resolve(pipeline.components, leave) for leave in Leave}
    for leave in (Leave.weights, Leave.component):
        pipeline.decisions = decisions[leave]
        for number in numbers:
            made = call_together(pipeline, [request_of(family, first + i) for i in range(number)])
            for index, picture in enumerate(made):
                assert torch.equal(picture, stock_bits(family, path, first + index)), (leave, number, index)
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    for component in pipeline.components:
        for name, tensor in (*component.module.named_parameters(), *component.module.named_buffers()):
            assert not tensor.is_inference(), f"{component.name}.{name}"


def run_prompts(
    world: TestWorld, pipeline: Pipeline, output: Path, prompts: Sequence[Prompt], **settings: Any
) -> tuple[list[Settled], dict[tuple[str | int, int], np.ndarray]]:
    """Run a job, its requests one by one unless `group` is set; what became of them in order, and the pictures by
    prompt and seed."""
    settings.setdefault("group", 1)
    job, ranks = JobConfig(output=str(output), format=Format.npy, **settings), pipeline.world
    with taken(job, {}, ranks) as folder:
        last_line, limits = LastLine(pipeline.progress, folder.run_file), Limits(timeout=60, grace=10)
        with watching(ranks, pipeline.progress, last_line, limits, StopFile(output / "stop")) as watch:
            requests = requests_of(prompts, job, pipeline, {})
            settled = run_job(requests, pipeline, job, ranks, folder=folder, watch=watch)
            ranks.gather(None)  # rank 0 has written the last line
    settled.sort(key=lambda result: result.request.number)
    manifest = output / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()] if manifest.exists() else []
    return settled, {(line["prompt"], line["seed"]): np.load(output / line["file"]) for line in lines}


@functools.cache
def stock_bits(family: str, path: Path, index: int, output_type: str = "np") -> torch.Tensor:
    """The same request, made by the stock pipeline in this one process."""
    described = family_of(family)
    prompt = described.prompts[index % len(described.prompts)]
    stock_call = tiny.call_modular if family in tiny.MODULAR else tiny.call_stock
    made: Any = stock_call(stock_of(path), described, prompt, index, output_type=output_type)
    return torch.as_tensor(made[0])


@functools.cache
def stock_picture(path: Path, prompt: str, seed: int) -> np.ndarray:
    """Of a Flux pipeline, for another prompt than those of its family."""
    return np.asarray(tiny.call_stock(stock_of(path), tiny.FAMILIES["flux"], prompt, seed)[0])


@functools.cache
def stock_of(path: Path) -> Any:
    """The stock pipeline on the device that the ranks compute on. One for all calls, to be left as it is."""
    return new_stock_of(path)


def new_stock_of(path: Path) -> Any:
    """For tests that change it."""
    load: Any = tiny.load_modular if (path / ModularPipeline.config_name).exists() else tiny.load_stock
    return load(path).to(os.environ.get(ORACLE_DEVICE, "cpu"))


def expect_stock_bits_in_both_scopes(
    world: TestWorld, pipeline: Pipeline, family: str, path: Path, moving: set[str]
) -> None:
    """Weights scope, component scope, weights scope again: calls in inference, in normal, in inference mode."""
    decisions = {leave: resolve(pipeline.components, leave) for leave in Leave}
    seen = spy_on_modes(pipeline)
    index = world.rank
    for leave in (Leave.weights, Leave.component, Leave.weights):
        pipeline.decisions = decisions[leave]
        seen.clear()
        assert torch.equal(call(pipeline, family, index), stock_bits(family, path, index)), leave
        normal = moving if leave is Leave.component else set()
        for component in pipeline.components:
            # A VAE that only decodes never runs its encoder.
            if component.name in seen:
                assert seen[component.name] == {component.name not in normal}, (leave, component.name)
        assert {c.name for c in pipeline.components if c.stage != "decode"} <= set(seen) | {"transformer_2"}
        assert seen["glue"] == {True} and any(c.name in seen for c in pipeline.components if c.stage == "decode")
        for component in pipeline.components:
            wanted = ExecutionMode.NORMAL if component.name in normal else ExecutionMode.INFERENCE
            assert pipeline.decisions[component.name].mode is wanted
            for name, tensor in (*component.module.named_parameters(), *component.module.named_buffers()):
                assert not tensor.is_inference(), f"{component.name}.{name}"


def spy_on_modes(pipeline: Pipeline) -> dict[str, set[bool]]:
    """Whether inference mode was on: inside the modules of each component, and in the scheduler's step ("glue")."""
    seen: dict[str, set[bool]] = {}

    def note(name: str) -> None:
        seen.setdefault(name, set()).add(torch.is_inference_mode_enabled())

    for component in pipeline.components:
        for inner in component.module.modules():
            if isinstance(inner, nn.Linear | nn.Conv2d | nn.Conv3d | nn.Embedding):
                inner.register_forward_pre_hook(lambda *_, name=component.name: note(name))
    step = pipeline.stock.scheduler.step

    def spied(*args: object, **kwargs: object) -> object:
        note("glue")
        return step(*args, **kwargs)

    pipeline.stock.scheduler.step = spied
    return seen
