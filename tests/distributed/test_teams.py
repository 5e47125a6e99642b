"""Ranks that make one request together: one picture with the stock bits, one record, one failure."""

import functools
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.calls.round import ResultsDiffer
from runner.errors import UserError
from runner.job.prompts import Prompt
from runner.job.results import Failed, Made
from runner.output.call_log import count_records
from runner.output.folder import Folder
from runner.output.manifest import Manifest
from runner.pipeline.pipeline import Pipeline
from runner.report.teams import described, lines
from tests import tiny
from tests.distributed.chaos import Job
from tests.distributed.chaos import lines as lines_of
from tests.distributed.placed import joined, opened, request_of, run_prompts, stock_bits
from tests.ranks import World, on_ranks

FAMILY = "qwenimage"  # calls its transformer once with the prompt, once with the negative one
SHARDED = "placement.transformer.share=shard"


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build(FAMILY, tiny_root)  # not on the ranks: there, transformers writes weights on rank 0 only


def prompts_of(number: int) -> list[Prompt]:
    requests = [request_of(FAMILY, index) for index in range(number)]
    return [Prompt(request.prompt, request.seed, dict(request.call)) for request in requests]


def expect_stock_pictures(pictures: dict[Any, np.ndarray], path: Path, numbers: list[int]) -> None:
    """Request i is the family's, with seed i."""
    assert sorted(seed for _, seed in pictures) == numbers
    for (_, seed), picture in pictures.items():
        assert np.array_equal(picture, stock_bits(FAMILY, path, seed).numpy()), seed


def expect_recorded(output: Path, made: int, failed: int) -> None:
    state = Manifest(Folder(output)).recover()
    assert (len(state.finished), len(state.failures)) == (made, failed)
    assert set(state.attempts.values()) <= {1}, "a try that another rank ended does not count"
    assert len(list(output.glob("**/*.npy"))) == made


@pytest.mark.parametrize(
    "overrides",
    [
        ["mesh.guidance=2"],
        ["mesh.guidance=2", SHARDED],
        ["mesh.guidance=2", "placement.transformer.rest=disk"],
    ],
    ids=["whole", "sharded across", "from disk"],
)
@pytest.mark.parametrize("group", [1, 2])
@on_ranks(2)
def test_a_team_makes_each_request_once(world: World, path: Path, overrides: list[str], group: int) -> None:
    pipeline = opened(world, path, *overrides)
    settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(3), group=group)
    assert [type(result) for result in settled] == [Made] * 3
    assert {result.line.rank for result in settled if isinstance(result, Made)} == {0}
    if world.rank == 0:
        expect_stock_pictures(pictures, path, [0, 1, 2])
        expect_recorded(world.tmp_path / "out", 3, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "in_step"),
    [
        (["mesh.guidance=2"], 2),
        (["mesh.guidance=4"], 4),
        (["mesh.guidance=2", SHARDED], 4),
        (["mesh.guidance=2", SHARDED, "mesh.shard=2"], 2),
        (["mesh.guidance=4", SHARDED, "mesh.shard=2"], 4),
    ],
    ids=["two teams", "one team", "a copy over two teams", "a copy a team", "two copies in a team"],
)
@on_ranks(4)
def test_teams_and_sharded_copies_keep_in_step(world: World, path: Path, overrides: list[str], in_step: int) -> None:
    pipeline = opened(world, path, *overrides)
    assert pipeline.lockstep.size == in_step
    settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(3))
    assert [type(result) for result in settled] == [Made] * 3
    firsts = {0} if pipeline.world.team.size == 4 else {0, 2}
    assert {result.line.rank for result in settled if isinstance(result, Made)} == firsts
    if world.rank == 0:
        expect_stock_pictures(pictures, path, [0, 1, 2])
        expect_recorded(world.tmp_path / "out", 3, 0)


@contextmanager
def failing(pipeline: Pipeline, rank: int, seed: int, error: Exception, times: int = 1000) -> Iterator[None]:
    """Between two calls of the denoiser, on one rank alone, in the request of this seed."""
    left = [times]
    owner = type(pipeline.stock.scheduler)
    plain = owner.step

    @functools.wraps(plain)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = pipeline.progress.request
        is_now = pipeline.world.rank == rank and request is not None and request.seed == seed and self.step_index
        if is_now and left[0]:
            left[0] -= 1
            raise error
        return plain(self, *args, **kwargs)

    owner.step = step
    try:
        yield
    finally:
        owner.step = plain


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("placement", [[], [SHARDED]], ids=["whole", "sharded"])
@pytest.mark.parametrize("culprit", [0, 1])
@on_ranks(2)
def test_a_failure_on_any_rank_of_a_team_is_its_requests(
    world: World, path: Path, culprit: int, placement: list[str], group: int
) -> None:
    pipeline = opened(world, path, "mesh.guidance=2", *placement)
    with failing(pipeline, culprit, 1, ValueError("a hiccup")):
        settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(3), group=group)
    failures = [result.failure for result in settled if isinstance(result, Failed)]
    assert [(failure.seed, failure.error, failure.message) for failure in failures] == [(1, "ValueError", "a hiccup")]
    if world.rank == 0:
        expect_stock_pictures(pictures, path, [0, 2])
        expect_recorded(world.tmp_path / "out", 2, 1)


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


@pytest.mark.slow
@on_ranks(4)
def test_another_team_in_step_makes_its_request_again(world: World, path: Path) -> None:
    pipeline = opened(world, path, "mesh.guidance=2", SHARDED)
    with failing(pipeline, 3, 1, ValueError("a hiccup")):
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


@pytest.mark.slow
def test_a_killed_rank_of_a_team_ends_the_job_and_the_next_run_makes_the_rest(tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = ["mesh.guidance=2", "job.prompt=a rocket", "job.images_per_prompt=12", "job.call.num_inference_steps=8"]
    job = Job(output, words, num_ranks=2)
    try:
        assert job.wait_for(lambda: len(lines_of(output / "manifest.jsonl")) >= 2 and len(job.workers()) == 2), job.log
        job.workers()[1].kill()
        job.gone_after(60)
    finally:
        job.kill()
    assert json.loads((output / "run.json").read_text())["state"] == "fault"
    before = lines_of(output / "manifest.jsonl")
    assert 2 <= len(before) < 12
    job = Job(output, words, num_ranks=2)
    try:
        job.gone_after(300)
    finally:
        job.kill()
    told = json.loads((output / "run.json").read_text())
    assert (told["state"], told["finished_before"]) == ("done", len(before)), job.log.read_text()[-2000:]
    made = [json.loads(line) for line in lines_of(output / "manifest.jsonl")]
    assert sorted(line["seed"] for line in made) == list(range(12)) and {line["rank"] for line in made} == {0}
    assert told["team"]["teams"] == 1


@on_ranks(2)
def test_a_team_goes_on_inside_a_request_from_its_first_ranks_log(world: World, path: Path) -> None:
    pipeline = opened(world, path, "mesh.guidance=2")
    output = world.tmp_path / "out"
    with failing(pipeline, 1, 0, ValueError("a hiccup")):
        settled, _ = run_prompts(world, pipeline, output, prompts_of(1), resume_inside=True)
    assert isinstance(settled[0], Failed)
    (log,) = Folder(output).calls.glob("*.log")
    kept = pipeline.world.gather(count_records(log))
    assert kept[0] == kept[1] >= 1
    settled, pictures = run_prompts(world, pipeline, output, prompts_of(1), resume_inside=True)
    assert isinstance(settled[0], Made) and pipeline.replay is not None
    assert pipeline.world.gather(pipeline.replay.kept.calls_replayed) == [kept[0], 0], "the first rank counts"
    if world.rank == 0:
        expect_stock_pictures(pictures, path, [0])


@on_ranks(2)
def test_the_report_says_how_the_ranks_are_laid_out(world: World, path: Path) -> None:
    pipeline = opened(world, path, "mesh.guidance=2")
    told = "\n".join(lines(pipeline))
    assert "teams: 1 team(s) of 2 rank(s): guidance 2 x context 1" in told and "guidance: " not in told
    assert "tiles: vae: every rank decodes all: its decoder keeps a cache from call to call" in told
    assert described(pipeline)["guidance"] == 2


@on_ranks(2)
def test_what_cannot_be_is_refused_on_all_ranks(world: World, path: Path) -> None:
    with pytest.raises(UserError, match=r"mesh.guidance=3 x mesh.context=1 makes teams of 3 .*mesh.guidance=2"):
        opened(world, path, "mesh.guidance=3")
    joined(world).gather(None)  # nobody waits for another one
