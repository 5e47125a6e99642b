"""What goes wrong in one rank's own call of a round: that request ends, named, or is made again; the others stay."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.job.results import Failed, Made
from runner.pipeline.pipeline import Pipeline
from tests import tiny
from tests.distributed.placed import opened, run_prompts
from tests.distributed.teams import FAMILY, SHARDED, expect_recorded, expect_stock_pictures, prompts_of
from tests.ranks import World, on_ranks

STEPS = tiny.FAMILIES[FAMILY].call["num_inference_steps"]


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build(FAMILY, tiny_root)


@contextmanager
def breaking(
    pipeline: Pipeline, rank: int, seed: int, break_: Callable[[Any], Any], times: int = 1000
) -> Iterator[None]:
    """On one rank alone, once the request of this seed has had a step: from then on, a rank of two makes one call of
    two. `break_` gives the denoiser's output anew, or raises."""
    forwards = 0

    def broken(module: Any, inputs: Any, output: Any) -> Any:
        nonlocal forwards, times
        request = pipeline.progress.request
        if pipeline.world.rank != rank or request is None or request.seed != seed:
            return output
        forwards += 1
        if forwards <= 2 or not times:
            return output
        times -= 1
        return break_(output)

    broken.__module__ = "offload"  # calls with a stranger's hooks inside are not shared out
    handle = pipeline.stock.transformer.register_forward_hook(broken)
    try:
        yield
    finally:
        handle.remove()


def _hiccup(_: Any) -> Any:
    raise ValueError("a hiccup")


def _full(_: Any) -> Any:
    raise torch.OutOfMemoryError("the device is full")


def _of_another_kind(output: Any) -> Any:
    return tuple(value.double() for value in output)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(("break_", "named"), [(_hiccup, "ValueError"), (_full, "OutOfMemoryError")])
@pytest.mark.parametrize("culprit", [0, 1])
@on_ranks(2)
def test_an_error_in_a_ranks_own_call_is_its_requests(
    world: World, path: Path, culprit: int, break_: Callable[[Any], Any], named: str, group: int
) -> None:
    pipeline = opened(world, path, "mesh.guidance=2")
    with breaking(pipeline, culprit, 1, break_):
        settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(3), group=group)
    (failure,) = [result.failure for result in settled if isinstance(result, Failed)]
    assert (failure.seed, failure.error, failure.component) == (1, named, "transformer")
    assert failure.message in ("a hiccup", "the device is full")
    assert pipeline.rounds is not None and pipeline.rounds.figures.components["transformer"].shared_out
    if world.rank == 0:
        expect_stock_pictures(pictures, path, [0, 2])
        expect_recorded(world.tmp_path / "out", 2, 1)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("culprit", [0, 1])
@on_ranks(2)
def test_a_result_of_another_kind_has_the_request_made_again(
    world: World, path: Path, culprit: int, group: int
) -> None:
    """By every rank, call by call: what the first call told does not hold."""
    pipeline = opened(world, path, "mesh.guidance=2")
    with breaking(pipeline, culprit, 1, _of_another_kind, times=1):
        settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(3), group=group)
    assert [type(result) for result in settled] == [Made] * 3
    assert pipeline.rounds is not None
    serial = pipeline.rounds.figures.components["transformer"].serial
    assert serial["a call did not give what the first one of its kind gave"] >= 2 * STEPS
    if world.rank == 0:
        expect_stock_pictures(pictures, path, [0, 1, 2])
        expect_recorded(world.tmp_path / "out", 3, 0)


@on_ranks(1)
def test_alone_too_a_result_of_another_kind_has_the_request_made_again(world: World, path: Path) -> None:
    """Where the calls of a round share a pass over weights that come from the disk."""
    pipeline = opened(world, path, "placement.transformer.rest=disk")
    with breaking(pipeline, 0, 1, _of_another_kind, times=1):
        settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(3))
    assert [type(result) for result in settled] == [Made] * 3
    expect_stock_pictures(pictures, path, [0, 1, 2])
    expect_recorded(world.tmp_path / "out", 3, 0)


@pytest.mark.parametrize("group", [1, 2])
@on_ranks(2)
def test_so_has_one_of_a_rank_that_shares_weights_and_makes_requests_of_its_own(
    world: World, path: Path, group: int
) -> None:
    """The rank beside it, which did nothing wrong, makes its own again too."""
    pipeline = opened(world, path, SHARDED)
    with breaking(pipeline, 1, 1, _of_another_kind, times=1):
        settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(4), group=group)
    assert [type(result) for result in settled] == [Made] * 4
    if world.rank == 0:
        expect_stock_pictures(pictures, path, [0, 1, 2, 3])
        expect_recorded(world.tmp_path / "out", 4, 0)
