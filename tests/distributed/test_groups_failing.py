"""What goes wrong in a group stays with the request that it belongs to."""

import dataclasses
import functools
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import offload
from runner.calls.lockstep import PeerLeft
from runner.job.prompts import Prompt
from runner.job.results import Failed
from runner.output.call_log import CallLog
from runner.output.folder import Folder
from runner.output.manifest import Manifest
from runner.pipeline.pipeline import Pipeline
from runner.resume.replay import Resume, StoppedInside
from tests import tiny
from tests.distributed.chaos import Job, lines
from tests.distributed.placed import call, opened, request_of, run_prompts, stock_bits, stock_of, stock_picture
from tests.ranks import World, on_ranks

PROMPTS = ("a red fox in the deep snow", "blue whale under a bright moon", "the culprit", "an old clock on the wall")


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build("flux", tiny_root)


def is_culprit(pipeline: Pipeline) -> bool:
    request = pipeline.progress.request
    return request is not None and request.prompt == "the culprit"


@contextmanager
def failing(pipeline: Pipeline, owner: type, method: str, at: int) -> Iterator[None]:
    """The method raises, of the culprit's calls the one with this number."""
    plain, calls = getattr(owner, method), [0]

    @functools.wraps(plain)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_culprit(pipeline):
            calls[0] += 1
            if calls[0] == at:
                raise ValueError("as told")
        return plain(self, *args, **kwargs)

    setattr(owner, method, wrapped)
    try:
        yield
    finally:
        setattr(owner, method, plain)


PLACES: dict[str, Callable[[Any], tuple[type, str, int]]] = {
    "before any call": lambda stock: (type(stock), "encode_prompt", 1),
    "between two steps": lambda stock: (type(stock.scheduler), "step", 2),
    "in a block": lambda stock: (type(stock.transformer.single_transformer_blocks[0].attn), "forward", 4),
    "in a text encoder's block": lambda stock: (type(stock.text_encoder_2.encoder.block[0].layer[0]), "forward", 1),
    "in the decoder": lambda stock: (type(stock.vae.decoder), "forward", 1),
}


def expect_all_but_the_culprit(world: World, pipeline: Pipeline, path: Path, prompts: int) -> None:
    """Four prompts over and over: the third of them fails."""
    call = tiny.FAMILIES["flux"].call
    asked = [Prompt(PROMPTS[index % 4], index, call) for index in range(prompts)]
    results, pictures = run_prompts(world, pipeline, world.tmp_path / "out", asked, group=4)
    failed = [result for result in results if isinstance(result, Failed)]
    assert [result.request.prompt for result in failed] == ["the culprit"] * len(failed) and failed
    assert all("ValueError: as told" in result.failure.reason for result in failed)
    assert len(pictures) + len(failed) == prompts
    state = Manifest(Folder(world.tmp_path / "out")).recover()
    tries = {id: number for id, number in state.attempts.items() if id not in state.finished}
    assert set(tries.values()) == {1}, "and no other loses a try"
    for (prompt, seed), picture in pictures.items():
        assert np.array_equal(picture, stock_picture(path, str(prompt), seed)), (prompt, seed)


@pytest.mark.parametrize("where", PLACES)
@on_ranks(1)
def test_an_error_of_one_request_costs_the_others_of_its_group_nothing(world: World, path: Path, where: str) -> None:
    pipeline = opened(world, path, "placement.default.rest=disk")
    with failing(pipeline, *PLACES[where](pipeline.stock)):
        expect_all_but_the_culprit(world, pipeline, path, 4)
    for component in pipeline.components:
        offloader = offload.offloader_of(component.module)
        assert offloader is not None and offloader.bytes_on_device == offloader.bytes_at_rest


@pytest.mark.parametrize("where", PLACES)
@on_ranks(1)
def test_on_one_rank_also_where_weights_are_sharded(world: World, path: Path, where: str) -> None:
    pipeline = opened(world, path, "placement.default.share=shard", "execution.leave_inference=weights")
    with failing(pipeline, *PLACES[where](pipeline.stock)):
        expect_all_but_the_culprit(world, pipeline, path, 4)
    assert torch.equal(call(pipeline, "flux", 0), stock_bits("flux", path, 0))


@pytest.mark.parametrize("where", ["before any call", "between two steps"])
@on_ranks(2)
def test_on_ranks_that_share_weights_the_culprit_leaves_on_all_of_them(world: World, path: Path, where: str) -> None:
    """Two ranks, four requests each; of the pair with the culprit the other one is made again."""
    pipeline = opened(world, path, "placement.default.share=shard")
    with failing(pipeline, *PLACES[where](pipeline.stock)):
        expect_all_but_the_culprit(world, pipeline, path, 7)


def group_of_four(output: Path, placement: str) -> Job:
    """Of real processes: two ranks, that make four requests each, and have begun to."""
    words = ["job.prompt=a rocket", "job.images_per_prompt=40", "job.call.num_inference_steps=12", "job.group=4"]
    job = Job(output, [*words, f"placement.transformer.{placement}", "job.grace_seconds=60"], num_ranks=2)
    assert job.wait_for(lambda: len(lines(output / "attempts.jsonl")) >= 2 and len(job.workers()) == 2), job.log
    return job


def begun(output: Path) -> set[str]:
    return {id for line in lines(output / "attempts.jsonl") for id in json.loads(line).get("started", [])}


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["share=shard", "rest=disk"])
def test_a_killed_rank_costs_one_group_and_one_request_a_try(placement: str, tmp_path: Path) -> None:
    job = group_of_four(tmp_path / "out", placement)
    try:
        time.sleep(1)
        job.workers()[1].kill()
        job.gone_after(60)
    finally:
        job.kill()
    fault = json.loads((job.output / "run.json").read_text())
    assert fault["state"] == "fault" and fault["fault"]["request"]
    state = Manifest(Folder(job.output)).recover()
    assert len(begun(job.output)) - len(state.finished) <= 8
    tries = {id: number for id, number in state.attempts.items() if number and id not in state.finished}
    assert set(tries) <= {fault["fault"]["request"]}


ASKS: dict[str, Callable[[Job], Any]] = {
    "SIGUSR1": lambda job: job.workers()[1].send_signal(signal.SIGUSR1),
    "SIGTERM": lambda job: job.workers()[1].send_signal(signal.SIGTERM),
    "Ctrl-C": lambda job: job.workers()[1].send_signal(signal.SIGINT),
    "the stop file": lambda job: (job.output / "stop").touch(),
}


@pytest.mark.slow
@pytest.mark.parametrize(("placement", "asks"), [("share=shard", "SIGUSR1"), *(("rest=disk", asks) for asks in ASKS)])
def test_a_group_that_is_asked_to_stop_gives_back_or_finishes_each_request(
    placement: str, asks: str, tmp_path: Path
) -> None:
    job = group_of_four(tmp_path / "out", placement)
    try:
        # Before one is made, a busy machine may not have begun to denoise: then all are given back.
        assert job.wait_for(lambda: bool(lines(job.output / "manifest.jsonl"))), job.log
        ASKS[asks](job)
        job.gone_after(120)
    finally:
        job.kill()
    assert json.loads((job.output / "run.json").read_text())["state"] == "stopped", job.log.read_text()[-2000:]
    state = Manifest(Folder(job.output)).recover()
    assert state.finished and not any(state.attempts[id] for id in begun(job.output) - set(state.finished))
    assert not list(job.output.rglob(".*"))


@on_ranks(1, 2)
def test_who_has_not_begun_to_denoise_is_given_back_at_once(world: World, path: Path) -> None:
    """Asked while the first of four encodes: none is made; asked while the first denoises: all are."""
    pipeline = opened(world, path, "placement.default.share=shard")
    for asked_at in ("encode", "denoise"):
        outcomes: list[str] = []
        before = pipeline.recorder.calls("denoise")

        def ended(index: int, outcome: Callable[[], Any], seconds: float, to: list[str] = outcomes) -> None:
            try:
                outcome()
                to.append("made")
            except (StoppedInside, PeerLeft) as error:
                to.append(type(error).__name__)

        def time_left(stage: str = asked_at, before: int = before) -> float | None:
            asked = {
                "encode": pipeline.progress.stage == "encode",
                "denoise": pipeline.recorder.calls("denoise") > before,
            }
            return 60.0 if world.rank == world.size - 1 and asked[stage] else None

        requests = [request_of("flux", index) for index in range(4)]
        pipeline.make_together(requests, [None] * 4, ended, time_left)
        if asked_at == "encode":
            assert set(outcomes) <= {"StoppedInside", "PeerLeft"} and len(outcomes) == 4
        else:
            assert outcomes == ["made"] * 4


@pytest.mark.parametrize("logged", [False, True])
@on_ranks(1, 2)
def test_of_those_that_denoise_as_many_finish_as_there_is_time_for(world: World, path: Path, logged: bool) -> None:
    """Four of six steps, asked after the third, with time for about two. With logs the others go on there."""
    pipeline, steps = opened(world, path, "placement.default.share=shard"), 6
    scheduler, deadline, asks = type(pipeline.stock.scheduler), list[float](), [True]
    stepped: list[float] = []
    step = scheduler.step
    if logged:
        pipeline.log_calls()

    def time_left() -> float | None:
        if not deadline and asks and len(stepped) == 4 * 3:
            own = (stepped[-1] - stepped[-5]) / 4  # seconds of a step, on this busy machine
            deadline.append(time.monotonic() + 2 * (steps - 3) * own)
        return deadline[0] - time.monotonic() if deadline else None

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.3)
        stepped.append(time.monotonic())
        return step(*args, **kwargs)

    def make(numbers: list[int]) -> tuple[dict[int, torch.Tensor], list[Exception]]:
        made: dict[int, torch.Tensor] = {}
        left: list[Exception] = []

        def ended(index: int, outcome: Callable[[], Any], seconds: float) -> None:
            try:
                made[numbers[index]] = torch.as_tensor(outcome()[0][0])
            except (StoppedInside, PeerLeft) as error:
                left.append(error)

        requests = [request_of("flux", number, num_inference_steps=steps) for number in numbers]
        logs = [CallLog(world.tmp_path / f"{world.rank}-{n}.log", {}, writes=True, say=print) for n in numbers]
        resumes = [Resume(log, time_left) if logged else None for log in logs]
        pipeline.make_together(requests, resumes, ended, time_left)
        return made, left

    scheduler.step = slowly
    try:
        made, left = make([0, 1, 2, 3])
    finally:
        scheduler.step = step
    # How many depends on what else the machine does: test_grace.py has it exact, with a clock of its own.
    finished = len(made)
    assert sorted(made) == list(range(finished)) and 1 <= finished <= 3 and len(left) == 4 - finished, (made, left)
    asks.clear()
    deadline.clear()
    before = pipeline.recorder.calls("denoise")
    made |= make(list(range(finished, 4)))[0]
    computed = pipeline.recorder.calls("denoise") - before
    assert computed <= (4 - finished) * (steps - 3) if logged else computed == (4 - finished) * steps
    assert len(made) == 4
    flux = tiny.FAMILIES["flux"]
    described = dataclasses.replace(flux, call={**flux.call, "num_inference_steps": steps})
    for number, picture in made.items():
        expected = tiny.call_stock(stock_of(path), described, flux.prompts[number % 3], number)[0]
        assert torch.equal(picture, torch.as_tensor(expected)), number


@on_ranks(1)
def test_who_finds_no_memory_in_a_group_is_made_again_alone(world: World, path: Path) -> None:
    pipeline = opened(world, path, "placement.transformer.rest=disk")
    attention, calls = type(pipeline.stock.transformer.transformer_blocks[0].attn), [0]
    plain = attention.forward

    def full_once(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_culprit(pipeline):
            calls[0] += 1
            if calls[0] == 5:
                raise torch.OutOfMemoryError("the device is full")
        return plain(self, *args, **kwargs)

    attention.forward = full_once
    try:
        asked = [Prompt(PROMPTS[index], index, tiny.FAMILIES["flux"].call) for index in range(4)]
        results, pictures = run_prompts(world, pipeline, world.tmp_path / "out", asked, group=4)
    finally:
        attention.forward = plain
    assert len(pictures) == 4 and not any(isinstance(result, Failed) for result in results) and len(results) == 4
    assert np.array_equal(pictures["the culprit", 2], stock_picture(path, "the culprit", 2))


@on_ranks(1, 2)
def test_auto_measures_the_first_requests_and_makes_the_others_together(world: World, path: Path) -> None:
    """From files that take thirty times as long as the blocks compute."""
    read = offload.DiskStore.read

    def slow(self: Any, *args: Any) -> None:
        time.sleep(0.02)
        read(self, *args)

    offload.DiskStore.read = slow  # type: ignore[method-assign]
    try:
        pipeline = opened(world, path, "placement.transformer.rest=disk")
        prompts = [Prompt("a red fox", seed, tiny.FAMILIES["flux"].call) for seed in range(8 * world.size)]
        results, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts, group="auto")
    finally:
        offload.DiskStore.read = read  # type: ignore[method-assign]
    assert len(results) == len(pictures) == 8 * world.size and not any(isinstance(r, Failed) for r in results)
    group = pipeline.group
    assert group["chosen"] > 2 and group["ranks"][0]["components"]["transformer"]["passes"] == 3, group
    for (prompt, seed), picture in pictures.items():
        assert np.array_equal(picture, stock_picture(path, str(prompt), seed)), seed


@on_ranks(1)
def test_auto_makes_requests_one_by_one_where_no_weights_move(world: World, path: Path) -> None:
    pipeline = opened(world, path)
    prompts = [Prompt("a red fox", seed, tiny.FAMILIES["flux"].call) for seed in range(2)]
    run_prompts(world, pipeline, world.tmp_path / "out", prompts, group="auto")
    assert pipeline.group["chosen"] == 1 and pipeline.group["reason"] == "no weights move"
