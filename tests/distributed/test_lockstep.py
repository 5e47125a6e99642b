"""Sharded jobs stay in lockstep: ragged lists, failing requests and ranks that go astray never hang."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.calls.lockstep import Lockstep, OutOfStep, PeerLeft, TornApart
from runner.errors import UserError
from runner.job.prompts import Prompt
from runner.job.results import Failed, Settled
from runner.output.folder import Folder
from runner.output.manifest import Manifest
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from tests import tiny
from tests.distributed.placed import joined, new_stock_of, opened, run_prompts, stock_of
from tests.ranks import World, on_ranks

# (prompt, seed, what differs from the family's call): steps and sizes are mixed, and no world size divides the list.
RAGGED: list[tuple[str, int, dict[str, Any]]] = [
    ("a cat", 0, {}),
    ("a dog on a hill", 1, {"num_inference_steps": 3}),
    ("rain", 2, {}),
    ("a red cube", 3, {"height": 16, "width": 24}),
    ("snow", 4, {"num_inference_steps": 3}),
    ("a cat", 5, {"guidance_scale": 1.5}),
    ("a boat", 6, {"num_inference_steps": 1}),
]


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build("flux", tiny_root)  # not on the ranks: there, transformers writes weights on rank 0 only


@pytest.fixture
def qwen(tiny_root: Path) -> Path:
    return tiny.build("qwenimage", tiny_root)


def make(
    world: World, pipeline: Pipeline, output: Path, rows: list[tuple[str, int, dict[str, Any]]]
) -> tuple[list[Settled], dict[tuple[str | int, int], np.ndarray]]:
    """Run the job; what became of its requests, and its pictures by prompt and seed."""
    call = tiny.FAMILIES["flux"].call
    prompts = [Prompt(text, seed, {**call, **differs}) for text, seed, differs in rows]
    results, pictures = run_prompts(world, pipeline, output, prompts)
    state = Manifest(Folder(output)).recover()
    assert {id: n for id, n in state.attempts.items() if n != 1} == {}, "a try that another rank ended does not count"
    return results, pictures


def expected(path: Path, prompt: str, seed: int, differs: dict[str, Any]) -> np.ndarray:
    stock = stock_of(path)
    call = {**tiny.FAMILIES["flux"].call, **differs}
    with torch.inference_mode():
        return stock(prompt, **call, generator=torch.Generator().manual_seed(seed), output_type="np").images[0]


@on_ranks(2, 3, 4)
def test_a_ragged_list_of_mixed_requests_gives_the_stock_bits(world: World, path: Path) -> None:
    pipeline = opened(world, path, "placement.default.share=shard")
    results, pictures = make(world, pipeline, world.tmp_path / "out", RAGGED)
    assert [(r.request.prompt, r.request.seed) for r in results] == [(prompt, seed) for prompt, seed, _ in RAGGED]
    assert not any(isinstance(result, Failed) for result in results) and len(pictures) == len(RAGGED)
    for prompt, seed, differs in RAGGED[world.rank :: world.size]:
        assert np.array_equal(pictures[prompt, seed], expected(path, prompt, seed, differs)), prompt


def _fails_before_the_first_forward(pipeline: Pipeline, culprit: str) -> None:
    encode = pipeline.stock.encode_prompt

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if culprit in str(kwargs["prompt"]):
            raise ValueError(f"cannot read {culprit}")
        return encode(*args, **kwargs)

    pipeline.stock.encode_prompt = refuse


def _fails_between_two_forwards(pipeline: Pipeline, culprit: str) -> None:
    encode, step = pipeline.stock.encode_prompt, pipeline.stock.scheduler.step
    making: list[str] = []

    def note(*args: Any, **kwargs: Any) -> Any:
        making[:] = [str(kwargs["prompt"])]
        return encode(*args, **kwargs)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if culprit in making[0] and pipeline.stock.scheduler.step_index == 1:
            raise ValueError(f"cannot go on with {culprit}")
        return step(*args, **kwargs)

    pipeline.stock.encode_prompt, pipeline.stock.scheduler.step = note, fail


@pytest.mark.parametrize("how", [_fails_before_the_first_forward, _fails_between_two_forwards])
@on_ranks(2, 3)
def test_one_ranks_failing_request_costs_the_others_nothing(
    world: World, path: Path, how: Callable[[Pipeline, str], None]
) -> None:
    pipeline = opened(world, path, "placement.default.share=shard")
    how(pipeline, "culprit")
    rows = [("a cat", 0, {}), ("the culprit", 1, {}), ("rain", 2, {}), ("snow", 3, {})]
    results, pictures = make(world, pipeline, world.tmp_path / "out", rows)
    failed = [result for result in results if isinstance(result, Failed)]
    assert [result.request.prompt for result in failed] == ["the culprit"]
    assert "ValueError: cannot" in failed[0].failure.reason
    assert set(pictures) == {("a cat", 0), ("rain", 2), ("snow", 3)}
    if world.rank == 0:
        for (prompt, seed), picture in pictures.items():
            assert np.array_equal(picture, expected(path, prompt, seed, {})), prompt


def _skips_a_forward(pipeline: Pipeline, culprit: str) -> None:
    """What alike arguments do not show: this prompt alone takes one step less."""
    encode, retrieve = pipeline.stock.encode_prompt, pipeline.stock.scheduler.set_timesteps
    making: list[str] = []

    def note(*args: Any, **kwargs: Any) -> Any:
        making[:] = [str(kwargs["prompt"])]
        return encode(*args, **kwargs)

    @functools.wraps(retrieve)
    def shorter(*args: Any, **kwargs: Any) -> Any:
        retrieve(*args, **kwargs)
        if culprit in making[0]:
            pipeline.stock.scheduler.timesteps = pipeline.stock.scheduler.timesteps[:-1]

    pipeline.stock.encode_prompt, pipeline.stock.scheduler.set_timesteps = note, shorter


@on_ranks(2, 3)
def test_requests_that_only_seem_alike_are_made_one_by_one(world: World, path: Path) -> None:
    pipeline = opened(world, path, "placement.transformer.share=shard")
    _skips_a_forward(pipeline, "short")
    rows = [("a cat", 0, {}), ("a short one", 1, {}), ("rain", 2, {}), ("snow", 3, {})]
    results, pictures = make(world, pipeline, world.tmp_path / "out", rows)
    assert not any(isinstance(result, Failed) for result in results) and len(pictures) == 4
    assert np.array_equal(pictures["rain", 2], expected(path, "rain", 2, {}))


@on_ranks(2, 3)
def test_ranks_leave_together_and_say_who_went_where(world: World) -> None:
    lockstep = Lockstep(joined(world).control)
    with lockstep.request():
        lockstep.meet("denoise/transformer.forward")

    with pytest.raises(OutOfStep, match=r"rank 0 is at decode.*; rank 1 is at denoise"), (
        lockstep.request()
    ):  # fmt: skip
        lockstep.meet("decode/vae.decode" if world.rank == 0 else "denoise/transformer.forward")

    with pytest.raises(ValueError if world.rank == 1 else PeerLeft, match="too long"), lockstep.request():
        if world.rank == 1:
            raise ValueError("too long")
        lockstep.meet("denoise/transformer.forward")

    with pytest.raises(OutOfStep), lockstep.request():  # one rank is through, the others are not
        if world.rank != 0:
            lockstep.meet("denoise/transformer.forward")

    with pytest.raises(RuntimeError, match="rank"), lockstep.request():  # each fails in its own way
        raise RuntimeError(f"rank {world.rank}")
    with lockstep.request():
        lockstep.meet("all is well again")


def _enhances(stock: Any) -> list[list[int]]:
    """Have the pipeline rewrite each prompt first, with as many tokens as the prompt itself says."""
    encode, made = stock.encode_prompt, []

    def enhance(*args: Any, **kwargs: Any) -> Any:
        (prompt,) = kwargs["prompt"] if isinstance(kwargs["prompt"], list) else [kwargs["prompt"]]
        if not prompt.startswith("write"):
            return encode(*args, **kwargs)  # the negative one
        number = int(prompt.split()[-1])
        tokens = stock.tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            ids = stock.text_encoder.generate(input_ids=tokens, max_new_tokens=number, do_sample=False)
        made.append(ids[0].tolist())
        return encode(*args, **kwargs)

    stock.encode_prompt = enhance
    return made


@on_ranks(2, 3)
def test_ranks_whose_sharded_encoder_generates_go_on_until_all_have_finished(world: World, qwen: Path) -> None:
    pipeline = opened(world, qwen, "placement.default.share=shard")
    made = _enhances(pipeline.stock)
    prompts = [Prompt(f"write tokens {number}", seed, tiny.FAMILIES["qwenimage"].call)
               for seed, number in enumerate((2, 9, 5))]  # fmt: skip
    results, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts)
    assert not any(isinstance(result, Failed) for result in results) and len(pictures) == 3
    # No request was made again: each rank generated once for each of its waves (filler included).
    assert len(made) == -(-3 // world.size)
    stock = new_stock_of(qwen)
    expected = _enhances(stock)
    prompt = prompts[world.rank]
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(prompt.seed)
        call = {**prompt.call, "generator": generator, "output_type": "np"}
        picture = stock(prompt=[prompt.text], **call).images[0]
    assert made[0] == expected[0] and np.array_equal(pictures[prompt.text, prompt.seed], picture)


@pytest.mark.slow
@on_ranks(4)
def test_one_sharded_copys_failure_leaves_the_other_alone_and_neither_waits(world: World, path: Path) -> None:
    """Two copies of two ranks: each makes a kind of its own, and only the copy of the failing request makes more."""
    pipeline = opened(world, path, "placement.default.share=shard", "mesh.shard=2", "mesh.replicate=2")
    _fails_between_two_forwards(pipeline, "culprit")
    begun: list[float] = []
    ended: list[float] = []
    encode, call = pipeline.stock.encode_prompt, Pipeline.__call__

    def slow(*args: Any, **kwargs: Any) -> Any:
        begun.append(time.monotonic())
        if "cat" in str(kwargs["prompt"]):
            time.sleep(2)
        return encode(*args, **kwargs)

    def timed(self: Pipeline, request: Request, resume: Any) -> Any:
        try:
            return call(self, request, resume)
        finally:
            ended.append(time.monotonic())

    pipeline.stock.encode_prompt, Pipeline.__call__ = slow, timed  # type: ignore[method-assign]
    rows = [("a cat", 0, {}), ("rain", 1, {"num_inference_steps": 1}), ("the culprit", 2, {})]
    rows.append(("snow", 3, {"num_inference_steps": 1}))
    try:
        results, pictures = make(world, pipeline, world.tmp_path / "out", rows)
    finally:
        Pipeline.__call__ = call  # type: ignore[method-assign]
    assert [result.request.prompt for result in results if isinstance(result, Failed)] == ["the culprit"]
    assert set(pictures) == {("a cat", 0), ("rain", 1), ("snow", 3)}
    told = joined(world).gather((len(begun), ended[0]))
    assert [number for number, _ in told] == [2, 2, 1, 1], "the other copy repeats nothing"
    assert max(told[2][1], told[3][1]) < min(told[0][1], told[1][1]) - 1, "nor does it wait"
    for prompt, seed, differs in rows[world.rank :: 4]:
        if prompt != "the culprit":
            assert np.array_equal(pictures[prompt, seed], expected(path, prompt, seed, differs)), prompt


@on_ranks(2)
def test_ranks_that_were_given_different_jobs_are_told(world: World) -> None:
    joined(world).check_same("alike", "the job")
    with pytest.raises(UserError, match="the job is not the same on all ranks: rank 1 differs from rank 0"):
        joined(world).check_same(f"rank {world.rank}", "the job")


def _fails_inside_a_forward(pipeline: Pipeline, culprit: str) -> None:
    encode, block = pipeline.stock.encode_prompt, pipeline.stock.transformer.transformer_blocks[1]
    making: list[str] = []

    def note(*args: Any, **kwargs: Any) -> Any:
        making[:] = [str(kwargs["prompt"])]
        return encode(*args, **kwargs)

    def fail(*_: Any) -> None:
        if culprit in making[0]:
            raise ValueError(f"cannot go on with {culprit}")

    pipeline.stock.encode_prompt = note
    block.register_forward_pre_hook(fail)


@on_ranks(1)
def test_a_rank_that_fails_inside_a_sharded_call_ends_the_job(world: World, path: Path) -> None:
    """The others cannot be met there. On one rank, where nobody waits, it is a request's failure like any other."""
    pipeline = opened(world, path, "placement.default.share=shard")
    _fails_inside_a_forward(pipeline, "culprit")
    results, _ = make(world, pipeline, world.tmp_path / "out", [("a cat", 0, {}), ("the culprit", 1, {})])
    assert [result.request.prompt for result in results if isinstance(result, Failed)] == ["the culprit"]


@on_ranks(2)
def test_who_fails_inside_a_sharded_call_does_not_wait_for_the_others(world: World) -> None:
    lockstep = Lockstep(joined(world).control)
    with pytest.raises(TornApart if world.rank == 0 else PeerLeft, match=r"denoise|rank 0 left"), lockstep.request():
        if world.rank == 0:
            lockstep.inside = "denoise/transformer.forward"
            raise ValueError("x")
        raise PeerLeft("rank 0 left: as the watch would end it")
