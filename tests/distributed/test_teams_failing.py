"""A failure on any rank of a team is its request's, and costs no other request or team anything."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from runner.job.results import Failed, Made
from runner.rounds.round import ResultsDiffer
from tests import tiny
from tests.distributed.counted import alike_in_each_copy
from tests.distributed.placed import opened, run_prompts
from tests.distributed.teams import FAMILY, SHARDED, expect_recorded, expect_stock_pictures, failing, prompts_of
from tests.ranks import World, on_ranks


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build(FAMILY, tiny_root)  # not on the ranks: there, transformers writes weights on rank 0 only


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("placement", [[], [SHARDED]], ids=["whole", "sharded"])
@pytest.mark.parametrize("culprit", [0, 1])
@on_ranks(2)
def test_a_failure_on_any_rank_of_a_team_is_its_requests(
    world: World, path: Path, culprit: int, placement: list[str], group: int
) -> None:
    pipeline = opened(world, path, "mesh.guidance=2", *placement)
    with (
        failing(pipeline, culprit, 1, ValueError("a hiccup")),
        alike_in_each_copy(pipeline) if placement else nullcontext(),
    ):
        settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(3), group=group)
    failures = [result.failure for result in settled if isinstance(result, Failed)]
    assert [(failure.seed, failure.error, failure.message) for failure in failures] == [(1, "ValueError", "a hiccup")]
    if world.rank == 0:
        expect_stock_pictures(pictures, path, [0, 2])
        expect_recorded(world.tmp_path / "out", 2, 1)


@on_ranks(2)
def test_a_request_whose_results_were_not_as_learned_is_made_again(world: World, path: Path) -> None:
    pipeline = opened(world, path, "mesh.guidance=2")
    with failing(pipeline, 0, 1, ResultsDiffer("of another kind"), times=1), failing(
        pipeline, 1, 1, ResultsDiffer("of another kind"), times=1
    ):  # fmt: skip
        settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(3))
    assert [type(result) for result in settled] == [Made] * 3
    if world.rank == 0:
        expect_stock_pictures(pictures, path, [0, 1, 2])
        expect_recorded(world.tmp_path / "out", 3, 0)


@pytest.mark.slow
@on_ranks(4)
def test_another_team_in_step_makes_its_request_again(world: World, path: Path) -> None:
    pipeline = opened(world, path, "mesh.guidance=2", SHARDED)
    with failing(pipeline, 3, 1, ValueError("a hiccup")), alike_in_each_copy(pipeline):
        settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(4))
    failures = [result.failure for result in settled if isinstance(result, Failed)]
    assert [(failure.seed, failure.error) for failure in failures] == [(1, "ValueError")]
    if world.rank == 0:
        expect_stock_pictures(pictures, path, [0, 2, 3])
        expect_recorded(world.tmp_path / "out", 3, 1)


@on_ranks(2)
def test_lack_of_memory_on_one_rank_of_a_team_ends_one_request(world: World, path: Path) -> None:
    pipeline = opened(world, path, "mesh.guidance=2")
    with failing(pipeline, 1, 1, torch.OutOfMemoryError("the device is full")):
        settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(3))
    failures = [result.failure for result in settled if isinstance(result, Failed)]
    assert [(failure.seed, failure.error) for failure in failures] == [(1, "OutOfMemoryError")]
    if world.rank == 0:
        expect_stock_pictures(pictures, path, [0, 2])
