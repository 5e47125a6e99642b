"""A finished request has its line on the disk as soon as its call ends, on whatever rank it was made."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runner.job.prompts import Prompt
from runner.output.folder import Folder
from runner.output.manifest import Manifest
from tests import tiny
from tests.distributed.chaos import Job, leftovers, lines, run_until_done
from tests.distributed.placed import joined, opened, run_prompts
from tests.ranks import World, on_ranks


@contextmanager
def before_each_decoding(stock: Any, look: Callable[[], None]) -> Iterator[None]:
    decoder = stock.vae.decoder
    handle = decoder.register_forward_pre_hook(lambda *_: look())
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("placement", ["rest=disk", "share=shard"])
@on_ranks(2)
def test_each_of_a_group_is_recorded_while_the_next_one_decodes_at_the_latest(
    world: World, placement: str, path: Path
) -> None:
    pipeline = opened(world, path, f"placement.transformer.{placement}")
    output, seen = world.tmp_path / "out", list[int]()
    file = Folder(output).manifest if world.rank == 0 else Folder(output).results_of(1)

    def look() -> None:
        told = [json.loads(line) for line in lines(file)]
        mine = [line.get("made", line) for line in told]
        seen.append(sum(line["rank"] == world.rank for line in mine))

    prompts = [Prompt("a red fox", seed, tiny.FAMILIES["flux"].call) for seed in range(6)]
    with before_each_decoding(pipeline.stock, look):
        run_prompts(world, pipeline, output, prompts, group=3)
    for recorded in joined(world).gather(seen):  # the last one may be on its way to the disk
        assert all(begun - 1 <= number <= begun for begun, number in enumerate(recorded)) and len(recorded) == 3
    assert len(lines(output / "manifest.jsonl")) == 6 and not list(output.glob("results-of-rank-*"))


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build("flux", tiny_root)


@pytest.mark.slow
def test_what_a_rank_had_finished_when_all_were_killed_is_not_made_again(tmp_path: Path) -> None:
    """In the middle of a wave of groups; nobody has a last word."""
    output = tmp_path / "out"
    words = ["job.prompt=a rocket", "job.images_per_prompt=16", "job.call.num_inference_steps=3", "job.group=8"]
    job = Job(output, [*words, "placement.transformer.rest=disk"], num_ranks=2)
    theirs = Folder(output).results_of(1)
    try:
        assert job.wait_for(lambda: len(lines(theirs)) >= 2), job.log.read_text()
        for process in [job.agent, *job.workers()]:
            process.kill()
        job.gone_after(20)
    finally:
        job.kill()
    made = {json.loads(line)["made"]["id"]: json.loads(line)["made"] for line in lines(theirs)}
    finished = Manifest(Folder(output)).recover().finished
    assert 2 <= len(made) < 8 and made.keys() <= finished.keys() and not theirs.exists()
    run_until_done(output, [*words, "placement.transformer.rest=disk"])
    after = Manifest(Folder(output)).recover().finished
    assert len(after) == 16 and all(after[id].mtime_ns == line["mtime_ns"] for id, line in made.items())
    assert leftovers(output) == []
