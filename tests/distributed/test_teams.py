"""Ranks that make one request together: one picture with the stock bits, one record."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from runner.errors import UserError
from runner.job.results import Failed, Made
from runner.output.call_log import count_records
from runner.output.folder import Folder
from runner.report.teams import described, lines
from tests import tiny
from tests.distributed.chaos import Job
from tests.distributed.chaos import lines as lines_of
from tests.distributed.counted import alike_in_each_copy
from tests.distributed.placed import joined, opened, run_prompts
from tests.distributed.teams import FAMILY, SHARDED, expect_recorded, expect_stock_pictures, failing, prompts_of
from tests.ranks import World, on_ranks


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build(FAMILY, tiny_root)  # not on the ranks: there, transformers writes weights on rank 0 only


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
@pytest.mark.parametrize("group", [1, 2])
@on_ranks(4)
def test_teams_and_sharded_copies_keep_in_step(
    world: World, path: Path, overrides: list[str], in_step: int, group: int
) -> None:
    """Five requests: in groups of two, the second team has one less at the end, and fills it in."""
    pipeline = opened(world, path, *overrides)
    assert pipeline.lockstep.size == in_step
    with alike_in_each_copy(pipeline) if SHARDED in overrides else nullcontext():
        settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(5), group=group)
    assert [type(result) for result in settled] == [Made] * 5
    firsts = {0} if pipeline.world.team.size == 4 else {0, 2}
    assert {result.line.rank for result in settled if isinstance(result, Made)} == firsts
    if world.rank == 0:
        expect_stock_pictures(pictures, path, [0, 1, 2, 3, 4])
        expect_recorded(world.tmp_path / "out", 5, 0)


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
