"""The trace of real jobs: what is in it, that it adds up, and that it tells a slow disk from a fast one."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import offload
from runner.output.folder import Folder
from runner.pipeline.pipeline import Pipeline
from runner.report.read_trace import read_intervals, read_ranks
from runner.trace.clock import Start
from runner.trace.figures import Figures, where
from runner.trace.interval import Interval, Lane
from runner.trace.recorder import Details
from runner.trace.sums import sums_of
from tests import tiny
from tests.distributed.placed import call, call_together, opened, request_of
from tests.distributed.test_generate import ROOT, generate
from tests.distributed.test_tiles import LARGER, tile
from tests.ranks import World, on_ranks


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks make three pictures with a sharded, a streamed and an offloaded component."""
    output = tmp_path_factory.mktemp("traced")
    placements = ["placement.transformer.share=shard", "placement.text_encoder.rest=disk", "placement.vae.rest=host"]
    recipe = ["job.prompt=[a rocket, a panda, a castle]", "job.images_per_prompt=1", "job.call.num_inference_steps=3"]
    result = generate(2, *placements, *recipe, "job.group=2", "job.profile=true", f"job.output={output}")
    assert result.returncode == 0, result.stderr
    return output


def test_all_that_a_rank_did_is_there_by_name(job: Path) -> None:
    ranks = read_ranks(Folder(job))
    assert sorted(ranks) == [0, 1]
    for rank, intervals in ranks.items():
        found = {(one.name, one.lane.value) for one in intervals}
        wanted = {
            ("request", "compute"), ("component", "compute"), ("block", "compute"), ("release", "compute"),
            ("prefetch", "prefetch"), ("gather", "prefetch"), ("wait", "wait"), ("meet", "wait"), ("write", "write"),
            ("encode", "stage"), ("denoise", "stage"), ("decode", "stage"),
        }  # fmt: skip
        assert wanted <= found, rank
        moved = {(one.name, one.component) for one in intervals if one.num_bytes and one.lane is Lane.prefetch}
        assert moved == {("gather", "transformer"), ("prefetch", "text_encoder"), ("prefetch", "vae")}
        blocks = {one.block for one in intervals if one.name == "block" and one.component == "transformer"}
        assert blocks >= {f"transformer_blocks.{i}" for i in range(len(blocks))} and blocks
        assert {one.step for one in intervals if one.name == "block" and one.stage == "denoise"} == {0, 1, 2}
        assert all(one.end >= one.begin >= 0 for one in intervals)
    made = [json.loads(line)["id"] for line in (job / "manifest.jsonl").read_text().splitlines()]
    written = [one.request for intervals in ranks.values() for one in intervals if one.name == "write"]
    assert sorted(written) == sorted(made)


def test_the_ranks_count_on_one_clock(job: Path) -> None:
    """They leave a meeting together: none before the last has come, up to what their clocks are off."""
    ranks, head = read_ranks(Folder(job)), read_intervals(Folder(job).intervals(1))[0]
    assert head is not None and head.rank == 1 and 0 < head.clock_error < 0.05
    first, second = ([one for one in ranks[rank] if one.name == "meet"] for rank in (0, 1))
    assert len(first) == len(second) > 3
    for one, other in zip(first, second, strict=True):
        assert max(one.begin, other.begin) <= min(one.end, other.end) + 2 * head.clock_error + 1e-3


def test_the_chrome_traces_are_json_in_the_order_of_time(job: Path) -> None:
    folder = Folder(job)
    for path, pids in [(folder.trace(0), {0}), (folder.trace(1), {1}), (folder.merged_trace, {0, 1})]:
        events = json.loads(path.read_text())["traceEvents"]
        ranges = [event for event in events if event["ph"] == "X"]
        assert {event["pid"] for event in ranges} == pids
        assert [event["ts"] for event in ranges] == sorted(event["ts"] for event in ranges)
        assert {"encode/text_encoder", "denoise/transformer", "decode/vae"} <= {event["name"] for event in ranges}
        for row in {(event["pid"], event["tid"]) for event in ranges}:
            expect_nested([event for event in ranges if (event["pid"], event["tid"]) == row])


def expect_nested(events: list[dict[str, Any]]) -> None:
    """A viewer draws a row only where each range lies in the one before, or after it."""
    open_until: list[float] = []
    for event in events:
        while open_until and open_until[-1] <= event["ts"] + 0.5:
            open_until.pop()
        end = event["ts"] + event["dur"]
        assert not open_until or end <= open_until[-1] + 2, event  # microseconds, each rounded
        open_until.append(end)


def test_the_times_of_a_rank_add_up_to_those_of_the_job(job: Path) -> None:
    for rank, figures in enumerate(json.loads((job / "run.json").read_text())["ranks"]):
        told = figures["time"]
        names = ("compute", "exposed_wait", "exchange")
        parts = sum(one[name] for one in told["components"] for name in names)
        rest = sum(told[name] for name in ("glue", "meet", "write"))
        assert parts > 0 and rest > 0
        assert parts + rest + told["other"] == pytest.approx(told["seconds"], rel=0.02)
        # The waves are what the job does: between them are a few records, on a disk that others use too.
        intervals = read_ranks(Folder(job))[rank]
        waves = max(one.end for one in intervals) - min(one.begin for one in intervals)
        assert 0.8 * waves - 0.5 < parts + rest <= 1.01 * waves < told["seconds"]


def test_run_json_tells_warm_up_and_steady_steps_apart(job: Path) -> None:
    for rank, figures in enumerate(json.loads((job / "run.json").read_text())["ranks"]):
        told = figures["time"]
        steps = {(one["stage"], one["part"]): one["number"] for one in told["steps"]}
        pictures = 2  # one of them is a repetition on the rank that has none left
        assert steps["denoise", "warm-up"] == pictures and steps["denoise", "steady"] == pictures * 2, rank
        for one in told["components"]:
            assert one["hidden"] <= one["transfer"] + 1e-9
            assert one["overlap_percent"] is None or 0 <= one["overlap_percent"] <= 100
        steady = [o for o in told["components"] if (o["component"], o["part"]) == ("transformer", "steady")]
        assert steady[0]["num_bytes"] > 0 and steady[0]["exposed_wait"] > 0
        found = where(sums_of(read_ranks(Folder(job))[rank]), told["seconds"])
        same = found.components["denoise", "transformer", False]
        assert same.compute == pytest.approx(steady[0]["compute"], abs=0.005), "the file of intervals says the same"


def test_the_script_answers_for_a_job_that_ended_and_for_one_that_was_killed(job: Path, tmp_path: Path) -> None:
    def printed(*arguments: str) -> str:
        words = [sys.executable, str(ROOT / "scripts" / "trace.py"), *arguments]
        return subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout

    table = printed(str(job), "--parts")
    for words in ("rank 0:", "rank 1:", "transformer steady", "exposed wait", "waiting for other ranks"):
        assert words in table
    (tmp_path / "profile").mkdir()
    for rank in (0, 1):  # a dead job has no more than these, and their last lines may be cut short
        lines = Folder(job).intervals(rank).read_bytes()
        Folder(tmp_path).intervals(rank).write_bytes(lines[: len(lines) // 2])
    assert "transformer" in printed(str(tmp_path), "--merge")
    assert len(json.loads(Folder(tmp_path).merged_trace.read_text())["traceEvents"]) > 50
    words = [sys.executable, str(ROOT / "scripts" / "trace.py"), str(tmp_path / "nothing")]
    nothing = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert nothing.returncode == 2 and "job.profile=true" in nothing.stderr


@pytest.fixture(scope="module")
def path(tiny_root: Path) -> Path:
    return tiny.build("flux", tiny_root)


@pytest.fixture(scope="module")
def qwenimage(tiny_root: Path) -> Path:
    return tiny.build("qwenimage", tiny_root)


@contextmanager
def intervals_of(pipeline: Pipeline) -> Iterator[list[Interval]]:
    kept: list[Interval] = []
    pipeline.recorder.settle()  # of what was made before
    if pipeline.recorder.details is None:
        pipeline.trace(Details(Start(0.0, 0.0), kept.extend))
    assert pipeline.recorder.details is not None
    pipeline.recorder.details.keep = kept.extend
    yield kept
    pipeline.recorder.settle()


def slow_down(pipeline: Pipeline, component: str, seconds: float) -> None:
    """Each read of the component's store takes so much longer: a disk that is known to be slow."""
    module = next(one.module for one in pipeline.components if one.name == component)
    offloader = offload.offloader_of(module)
    assert offloader is not None
    read = offloader.store.read

    def slow(unit: str, out: torch.Tensor, start: int = 0) -> None:
        time.sleep(seconds)
        read(unit, out, start)

    offloader.store.read = slow  # type: ignore[method-assign]


@on_ranks(1)
def test_waits_for_a_slow_disk_are_exposed_by_what_compute_does_not_hide(world: World, path: Path) -> None:
    pipeline = opened(world, path, "placement.transformer.rest=disk", "placement.transformer.window=2")
    call(pipeline, "flux", 0)

    def steady() -> Figures:
        before = {kind: (total.seconds, total.num_bytes) for kind, total in pipeline.recorder.sums.items()}
        call(pipeline, "flux", 0)
        pipeline.recorder.settle()
        figures = Figures()
        for kind, total in pipeline.recorder.sums.items():
            if kind.component == "transformer":
                seconds, num_bytes = before.get(kind, (0.0, 0))
                figures.add(kind, type(total)(total.seconds - seconds, total.times, total.num_bytes - num_bytes))
        return figures

    fast = steady()
    slow_down(pipeline, "transformer", 0.03)
    slow = steady()
    reads = 6 * 3 + 1  # six blocks in three steps, and what is outside the blocks
    assert slow.num_bytes >= fast.num_bytes > 0
    most = 0.03 * (reads + 4) + fast.transfer + 0.3  # the window's blocks are asked for once more
    assert 0.03 * reads <= slow.transfer <= most
    assert slow.exposed_wait >= slow.transfer - slow.compute - 0.03 * 3, "what compute cannot hide is waited for"
    assert slow.exposed_wait <= slow.transfer + 0.05
    assert slow.overlap_percent is not None and slow.overlap_percent < 60
    assert fast.exposed_wait < 0.1 * slow.exposed_wait + 0.05


@contextmanager
def bytes_made(module: Any) -> Iterator[list[int]]:
    """Of each output of the module meanwhile."""
    made: list[int] = []
    handle = module.register_forward_hook(lambda _module, _args, output: made.append(tensor_of(output).nbytes))
    yield made
    handle.remove()


def tensor_of(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def exchanges(kept: Sequence[Interval]) -> list[Interval]:
    return [one for one in kept if one.lane is Lane.exchange]


@on_ranks(2)
def test_the_exchanges_of_a_round_are_there_with_their_bytes(world: World, qwenimage: Path) -> None:
    """Each rank makes one of two calls a step, and gets the other's result."""
    pipeline = opened(world, qwenimage, "mesh.guidance=2")
    with bytes_made(pipeline.stock.transformer) as made:  # a stranger's hook: each rank makes both calls of each step
        call(pipeline, "qwenimage", 0)
    call(pipeline, "qwenimage", 0)  # each rank learns what the calls give
    with intervals_of(pipeline) as kept:
        call(pipeline, "qwenimage", 0)
    steps = len(made) // 2
    exchanged = [one for one in exchanges(kept) if one.component == "transformer"]
    assert [one.num_bytes for one in exchanged] == made[:steps] and steps > 1
    assert {(one.name, one.stage) for one in exchanged} == {("exchange", "denoise")}
    assert [one.step for one in exchanged] == list(range(steps)), exchanged
    met = [one for one in kept if (one.name, one.component) == ("meet", "transformer")]
    assert len(met) == steps, "the ranks meet before each"
    denoised = where(sums_of(kept), 1.0).components["denoise", "transformer", False]
    assert denoised.exchange == pytest.approx(sum(one.seconds for one in exchanged if one.step), abs=1e-5)


@on_ranks(2)
def test_the_exchange_of_tiles_is_there_with_its_bytes(world: World, path: Path) -> None:
    pipeline = opened(world, path, "mesh.guidance=2")
    tile(pipeline.stock.vae, "flux")
    with bytes_made(pipeline.stock.vae.decoder) as made, intervals_of(pipeline) as kept:
        pipeline(request_of("flux", 0, **LARGER))
    (exchange,) = (one for one in exchanges(kept) if one.component == "vae")
    of_ranks = pipeline.world.gather(sum(made))
    assert exchange.num_bytes == of_ranks[1 - world.rank] > 0, "the tiles of the other rank"
    decoded = where(sums_of(kept), 1.0).components["decode", "vae", True]
    (called,) = (one for one in kept if (one.name, one.component) == ("component", "vae"))
    (met,) = (one for one in kept if (one.name, one.component) == ("meet", "vae"))
    assert decoded.compute == pytest.approx(called.seconds - exchange.seconds - met.seconds, abs=1e-5)


@on_ranks(2)
def test_the_exchange_of_tokens_is_there_with_its_bytes(world: World, path: Path) -> None:
    pipeline = opened(world, path, "mesh.context=2")
    with bytes_made(pipeline.stock.transformer) as made, intervals_of(pipeline) as kept:
        call(pipeline, "flux", 0)
    assert made and [one.num_bytes for one in exchanges(kept)] == [num_bytes // 2 for num_bytes in made]
    calls = [one for one in kept if (one.name, one.component) == ("component", "transformer")]
    for one, around in zip(exchanges(kept), calls, strict=True):
        assert one.component == "transformer" and around.begin <= one.begin <= one.end <= around.end


@on_ranks(1)
def test_the_turns_of_a_group_are_seen(world: World, path: Path) -> None:
    """A block comes up once, and the requests run it one after the other; each call is in pieces."""
    pipeline = opened(world, path, "placement.transformer.rest=disk", "placement.transformer.window=2")
    with intervals_of(pipeline) as kept:
        call_together(pipeline, [request_of("flux", index) for index in range(3)])
    blocks = [one for one in sorted(kept, key=lambda one: one.begin) if (one.name, one.stage) == ("block", "denoise")]
    assert len(blocks) == 6 * 3 * 3
    for first in range(0, len(blocks), 3):
        assert len({(one.block, one.step) for one in blocks[first : first + 3]}) == 1, "three turns at each block"
    waits = Counter(one.block for one in kept if one.name == "wait" and one.component == "transformer" and one.block)
    assert set(waits.values()) == {3}, "once a step, for all"
    calls = [one for one in kept if one.name == "component" and one.component == "transformer"]
    assert sum(not one.goes_on for one in calls) == 9 and len(calls) > 9 * 5
    for one, other in pairwise(blocks):
        assert one.end <= other.begin + 1e-6, "one thread"
    requests = [one for one in kept if one.name == "request"]
    assert sum(not one.goes_on for one in requests) == 3


@on_ranks(1)
def test_without_a_trace_there_are_no_hooks_on_blocks_and_no_intervals(world: World, path: Path) -> None:
    pipeline = opened(world, path, "placement.transformer.rest=disk")

    def hooks() -> int:
        modules = [inner for one in pipeline.components for inner in one.module.modules() if inner is not one.module]
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules)

    plain = hooks()
    call(pipeline, "flux", 0)
    assert hooks() == plain and pipeline.recorder.details is None
    assert not {"block", "release", "denoise"} & {kind.name for kind in pipeline.recorder.sums}
    with intervals_of(pipeline) as kept:
        call(pipeline, "flux", 0)
    assert hooks() > plain and {"block", "release", "denoise"} <= {one.name for one in kept}
    pipeline.close()
    assert hooks() < plain + 1


@on_ranks(1)
def test_what_is_always_recorded_takes_microseconds_a_block(world: World, path: Path) -> None:
    """A block of a real model computes for milliseconds."""
    recorder = opened(world, path).recorder
    weights, calls, blocks = recorder.of_weights("transformer"), 100, 60
    began = time.thread_time()  # others use this machine as well
    with recorder.request("a"):
        for step in range(calls):
            with recorder.component("transformer", "denoise", step):
                for _ in range(blocks):  # a wait and a copy for each
                    weights.tell("wait", "blocks.0", recorder.now(), recorder.now())
                    weights.tell("prefetch", "blocks.0", recorder.now(), recorder.now(), 1)
                    weights.tell("release", "blocks.0", 0.0, 0.0)
    recorder.settle()
    each = (time.thread_time() - began) / (calls * blocks)
    assert each < 50e-6, each


def test_with_ops_a_ranks_trace_has_torchs_operators_inside_the_blocks(tmp_path: Path) -> None:
    recipe = ["job.prompt=a rocket", "job.images_per_prompt=1", "job.call.num_inference_steps=2", "job.profile=ops"]
    result = generate(1, *recipe, f"job.output={tmp_path}")
    assert result.returncode == 0, result.stderr
    events = json.loads(Folder(tmp_path).trace(0).read_text())["traceEvents"]
    ranges = [event for event in events if event["ph"] == "X"]
    blocks = [event for event in ranges if event["pid"] == 0 and event["name"] == "transformer_blocks.0"]
    products = [event for event in ranges if event["pid"] >= 1000 and event["name"] == "aten::addmm"]
    assert len(blocks) == 2 and len(products) > 10
    for block in blocks:
        inside = [p for p in products if block["ts"] <= p["ts"] and p["ts"] + p["dur"] <= block["ts"] + block["dur"]]
        assert len(inside) >= 5, "projections of the block: the clocks of both agree"
