"""Where no rank needs another, who is done has the next request: ragged jobs and slow ranks keep nobody waiting."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.job.prompts import Prompt
from runner.job.results import Failed, Made
from runner.output.folder import Folder
from runner.output.manifest import Manifest
from tests import tiny
from tests.distributed.chaos import Job, lines
from tests.distributed.placed import joined, opened, run_prompts, stock_of
from tests.ranks import World, on_ranks

CALL = tiny.FAMILIES["flux"].call


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build("flux", tiny_root)


def started(output: Path) -> list[list[str]]:
    lines = map(json.loads, (output / "attempts.jsonl").read_text().splitlines())
    return [line["started"] for line in lines if "started" in line]


def expect_stock_bits(path: Path, world: World, prompts: list[Prompt], pictures: dict[Any, np.ndarray]) -> None:
    for prompt in prompts[world.rank :: world.size]:
        with torch.inference_mode():
            generator = torch.Generator().manual_seed(prompt.seed)
            stock = stock_of(path)(prompt.text, **prompt.call, generator=generator, output_type="np").images[0]
        assert np.array_equal(pictures[prompt.text, prompt.seed], stock), prompt.seed


@on_ranks(2, 3)
def test_a_slow_rank_makes_fewer_requests_of_a_ragged_job(world: World, path: Path) -> None:
    pipeline = opened(world, path)
    step = pipeline.stock.scheduler.step

    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.5 if world.rank == 0 else 0)
        return step(*arguments, **named)

    pipeline.stock.scheduler.step = slow
    prompts = [Prompt("a fox", seed, {**CALL, "num_inference_steps": 1 + seed % 3}) for seed in range(9)]
    output = world.tmp_path / "out"
    results, pictures = run_prompts(world, pipeline, output, prompts)
    assert [result.request.seed for result in results] == list(range(9)), "each rank knows all, in order"
    made_by = Counter(result.line.rank for result in results if isinstance(result, Made))
    assert sum(made_by.values()) == 9 and all(made_by[rank] > made_by[0] for rank in range(1, world.size))
    assert [len(ids) for ids in started(output)] == [1] * 9, "each is begun by itself, once"
    expect_stock_bits(path, world, prompts, pictures)


@on_ranks(2)
def test_groups_are_handed_out_one_by_one_too(world: World, path: Path) -> None:
    """Of the sizes that waves would have."""
    pipeline = opened(world, path, "placement.transformer.rest=host")
    prompts = [Prompt("a fox", seed, CALL) for seed in range(7)]
    results, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts, group=3)
    assert all(isinstance(result, Made) for result in results) and len(pictures) == 7
    assert sorted(len(ids) for ids in started(world.tmp_path / "out")) == [1, 1, 2, 3]
    expect_stock_bits(path, world, prompts, pictures)
    pipeline.close()


@on_ranks(2)
def test_what_a_group_had_no_memory_for_its_rank_makes_alone(world: World, path: Path) -> None:
    pipeline = opened(world, path, "placement.transformer.rest=host")
    encode, asked = pipeline.stock.encode_prompt, Counter[str]()

    def short_of_memory(*arguments: Any, **named: Any) -> Any:
        prompt = str(named["prompt"])
        asked[prompt] += 1
        if prompt.startswith("large") and asked[prompt] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90.00 GiB")
        return encode(*arguments, **named)

    pipeline.stock.encode_prompt = short_of_memory
    prompts = [Prompt(f"{'large' if seed % 2 else 'small'} {seed}", seed, CALL) for seed in range(8)]
    results, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts, group=2)
    assert all(isinstance(result, Made) for result in results) and len(pictures) == 8
    again = joined(world).gather({prompt for prompt, times in asked.items() if times > 1})
    assert set.union(*again) == {f"large {seed}" for seed in (1, 3, 5, 7)}
    assert not set.intersection(*again), "each by the rank that could not make it in its group"
    pipeline.close()


@on_ranks(2)
def test_a_request_that_fails_costs_one_try_and_no_other(world: World, path: Path) -> None:
    pipeline = opened(world, path)
    encode = pipeline.stock.encode_prompt

    def refuse(*arguments: Any, **named: Any) -> Any:
        if "bad" in str(named["prompt"]):
            raise ValueError("not this one")
        return encode(*arguments, **named)

    pipeline.stock.encode_prompt = refuse
    output = world.tmp_path / "out"
    prompts = [Prompt("bad" if seed == 2 else "a fox", seed, CALL) for seed in range(5)]
    results, _ = run_prompts(world, pipeline, output, prompts)
    assert [isinstance(result, Failed) for result in results] == [seed == 2 for seed in range(5)]
    state = Manifest(Folder(output)).recover()
    assert len(state.finished) == 4 and [state.attempts[id] for id in state.failures] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 2])
def test_a_rank_that_is_killed_costs_its_own_request_a_try_and_no_other(lost: int, tmp_path: Path) -> None:
    """Where rank 0 is, nobody else knows of all, and each withdraws what itself had begun."""
    output = tmp_path / "out"
    words = ["job.prompt=a rocket", "job.images_per_prompt=9", "job.call.num_inference_steps=200"]
    job = Job(output, words, num_ranks=3)
    try:
        assert job.wait_for(lambda: len(lines(output / "attempts.jsonl")) >= 3), job.log.read_text()
        (victim,) = [worker for worker in job.workers() if worker.environ()["RANK"] == str(lost)]
        time.sleep(1)  # all have told where they are
        victim.kill()
        job.gone_after(20)
    finally:
        job.kill()
    assert len(started(output)) == 3 and not (output / "manifest.jsonl").exists()
    assert sorted(Manifest(Folder(output)).recover().attempts.values()) == [0, 0, 1], job.log.read_text()
