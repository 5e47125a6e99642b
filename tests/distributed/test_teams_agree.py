"""Ranks of a team that differ, in what was drawn or in what was made, give an error and no picture."""

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.job.results import Failed
from runner.pipeline.pipeline import Pipeline
from tests import tiny
from tests.distributed.placed import opened, run_prompts
from tests.distributed.teams import FAMILY, SHARDED, expect_recorded, expect_stock_pictures, prompts_of
from tests.ranks import World, on_ranks


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build(FAMILY, tiny_root)  # not on the ranks: there, transformers writes weights on rank 0 only


def _draws_from_torch(scheduler: Any, generator: torch.Generator) -> None:
    torch.randn(1)


def _draws_from_numpy(scheduler: Any, generator: torch.Generator) -> None:
    np.random.rand()


def _draws_from_python(scheduler: Any, generator: torch.Generator) -> None:
    random.random()


def _draws_from_the_requests(scheduler: Any, generator: torch.Generator) -> None:
    torch.randn(1, generator=generator)


@contextmanager
def drawing_apart(
    pipeline: Pipeline, draw: Callable[[Any, torch.Generator], None], rank: int, seed: int
) -> Iterator[None]:
    """After the first step, on one rank alone, in the request of this seed, something draws a number more."""
    scheduler, stock = type(pipeline.stock.scheduler), type(pipeline.stock)
    step, prepare = scheduler.step, stock.prepare_latents
    generators: dict[int, torch.Generator] = {}

    def prepared(self: Any, *args: Any) -> Any:
        request = pipeline.progress.request
        assert request is not None
        generators[request.seed] = next(arg for arg in args if isinstance(arg, torch.Generator))
        return prepare(self, *args)

    @functools.wraps(step)
    def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = pipeline.progress.request
        if pipeline.world.rank == rank and request is not None and request.seed == seed and self.step_index is None:
            draw(self, generators[seed])
        return step(self, *args, **kwargs)

    scheduler.step, stock.prepare_latents = stepped, prepared
    try:
        yield
    finally:
        scheduler.step, stock.prepare_latents = step, prepare


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("placement", [[], [SHARDED]], ids=["whole", "sharded"])
@pytest.mark.parametrize(
    ("draw", "named"),
    [
        (_draws_from_torch, "torch's generator of the CPU"),
        (_draws_from_numpy, "numpy's generator"),
        (_draws_from_python, "Python's generator"),
        (_draws_from_the_requests, "the request's generator"),
    ],
)
@on_ranks(2)
def test_ranks_that_drew_apart_give_an_error_and_no_picture(
    world: World,
    path: Path,
    draw: Callable[[Any, torch.Generator], None],
    named: str,
    placement: list[str],
    group: int,
) -> None:
    pipeline = opened(world, path, "mesh.guidance=2", *placement)
    with drawing_apart(pipeline, draw, 1, 1):
        settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(3), group=group)
    (failure,) = [result.failure for result in settled if isinstance(result, Failed)]
    assert (failure.seed, failure.error) == (1, "TeamDiffers")
    assert failure.message.startswith(f"{named} is different on rank 1 than on rank 0, first seen at ")
    assert "the end" not in failure.message or not placement, "each call of a sharded component is a meeting"
    if world.rank == 0:
        expect_stock_pictures(pictures, path, [0, 2])
        expect_recorded(world.tmp_path / "out", 2, 1)


@contextmanager
def decoding_apart(pipeline: Pipeline, rank: int) -> Iterator[None]:
    """One rank's decoder gives another value for one pixel."""
    plain = type(pipeline.stock.vae.decoder).forward

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = plain(self, *args, **kwargs)
        made.view(-1)[7] += 1e-3 if pipeline.world.rank == rank else 0
        return made

    type(pipeline.stock.vae.decoder).forward = forward
    try:
        yield
    finally:
        type(pipeline.stock.vae.decoder).forward = plain


@on_ranks(2)
def test_ranks_that_made_different_pixels_give_an_error_and_no_picture(world: World, path: Path) -> None:
    pipeline = opened(world, path, "mesh.guidance=2")
    with decoding_apart(pipeline, 0):
        settled, _ = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(1))
    (failure,) = [result.failure for result in settled if isinstance(result, Failed)]
    assert failure.message == "what was made is different on rank 1 than on rank 0, first seen at the end"
    if world.rank == 0:
        expect_recorded(world.tmp_path / "out", 0, 1)


@pytest.mark.slow
@on_ranks(4)
def test_a_team_that_differs_costs_the_team_in_step_nothing(world: World, path: Path) -> None:
    pipeline = opened(world, path, "mesh.guidance=2", SHARDED)
    with drawing_apart(pipeline, _draws_from_torch, 2, 1):
        settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(4))
    (failure,) = [result.failure for result in settled if isinstance(result, Failed)]
    assert (failure.seed, failure.error) == (1, "TeamDiffers")
    assert "is different on rank 3 than on rank 2" in failure.message
    if world.rank == 0:
        expect_stock_pictures(pictures, path, [0, 2, 3])
        expect_recorded(world.tmp_path / "out", 3, 1)
