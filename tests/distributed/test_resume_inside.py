"""A log of one rank, placement or world goes on in every other; ranks that share weights go on together."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.calls.lockstep import PeerLeft
from runner.output.call_log import count_records
from runner.resume.replay import StoppedInside
from tests import tiny
from tests.distributed.chaos import ROOT, Job, lines, run_plain
from tests.distributed.placed import opened
from tests.distributed.test_stopping import start_alone
from tests.ranks import World, on_ranks
from tests.resuming import Bench, request_of, stock_bits

PLACEMENTS = {
    "device": [],
    "host": ["placement.default.rest=host"],
    "disk": ["placement.default.rest=disk", "execution.leave_inference=weights"],
    "sharded": ["placement.default.share=shard"],
    "sharded, host": ["placement.transformer.share=shard", "placement.transformer.rest=host"],
}


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build("flux", tiny_root)  # not on the ranks: there, transformers writes weights on rank 0 only


@pytest.fixture
def wan22(tiny_root: Path) -> Path:
    return tiny.build("wan22", tiny_root)


def bench_of(world: World, path: Path, placement: str) -> Bench:
    """Each rank makes its own request, and keeps its own logs."""
    folder = world.tmp_path / f"rank{world.rank}"
    folder.mkdir(exist_ok=True)
    return Bench(opened(world, path, *PLACEMENTS[placement]), folder)


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
@on_ranks(1, 2)
def test_a_log_of_one_placement_goes_on_in_every_other(world: World, path: Path, placement: str) -> None:
    """Killed at each call of the one, it goes on in the others."""
    request, expected = request_of("flux", world.rank), stock_bits("flux", path, world.rank)
    first = bench_of(world, path, placement)
    made, calls = first.make(request, "whole")
    assert torch.equal(made, expected) and calls == first.records("whole") == 4
    for other in PLACEMENTS:
        second = bench_of(world, path, other)
        for killed_at in range(5):
            made, computed = second.make(request, second.cut("whole", killed_at, torn=50))
            assert torch.equal(made, expected), (other, killed_at)
            assert (computed, second.records("cut")) == (4 - killed_at, 4), (other, killed_at)
        assert not second.said


@pytest.mark.slow
@on_ranks(2)
def test_two_sharded_dits_of_a_video_go_on(world: World, wan22: Path) -> None:
    request, expected = request_of("wan22", world.rank), stock_bits("wan22 two DiTs", wan22, world.rank)
    bench = bench_of(world, wan22, "sharded")
    made, calls = bench.make(request, "whole")
    assert torch.equal(made, expected)
    for killed_at in range(calls + 1):
        made, computed = bench.make(request, bench.cut("whole", killed_at))
        assert torch.equal(made, expected) and computed == calls - killed_at


@on_ranks(1)
def test_a_replayed_call_moves_no_weights_and_gives_a_tensor_of_the_same_kind(world: World, path: Path) -> None:
    kinds: dict[str, list[tuple[Any, ...]]] = {}
    for name in PLACEMENTS:
        bench = bench_of(world, path, name)
        stock, seen, forwards = bench.pipeline.stock, list[tuple[Any, ...]](), list[int]()
        step, forward = stock.scheduler.step, stock.transformer.transformer_blocks[0].forward

        def spied(output: torch.Tensor, *args: Any, step: Any = step, seen: Any = seen, **kwargs: Any) -> Any:
            place = (output.storage_offset(), output.stride(), output.dtype, output.device)
            seen.append((output.is_inference(), output.requires_grad, *place))
            output.mul_(1)  # as pipelines do that write into a result
            return step(output, *args, **kwargs)

        def counted(*args: Any, forward: Any = forward, forwards: Any = forwards, **kwargs: Any) -> Any:
            forwards.append(1)
            return forward(*args, **kwargs)

        stock.scheduler.step, stock.transformer.transformer_blocks[0].forward = spied, counted
        bench.make(request_of("flux"), name)
        assert len(forwards) == 4
        bench.make(request_of("flux"), name)
        assert len(forwards) == 4 and len(seen) == 8 and seen[:4] == seen[4:], name
        kinds[name] = seen
    assert kinds["device"][0][0] and not kinds["host"][0][0], "both kinds were there"


@pytest.mark.parametrize("lengths", [(1, 3), (4, 0), (0, 2), (4, 4), (2, 2)])
@on_ranks(2)
def test_ranks_of_one_copy_replay_what_all_of_them_have(world: World, path: Path, lengths: tuple[int, int]) -> None:
    request, expected = request_of("flux", world.rank), stock_bits("flux", path, world.rank)
    alone = bench_of(world, path, "device")
    alone.make(request, "whole")
    together = bench_of(world, path, "sharded")
    made, computed = together.make(request, together.cut("whole", lengths[world.rank]))
    assert torch.equal(made, expected) and computed == 4 - min(lengths)
    assert together.records("cut") == 4, "the longer log is kept, and both are complete"
    made, computed = together.make(request, "cut")
    assert torch.equal(made, expected) and computed == 0


@on_ranks(2)
def test_filler_reads_the_log_of_the_request_that_it_repeats(world: World, path: Path) -> None:
    request, expected = request_of("flux", 0), stock_bits("flux", path, 0)
    bench = bench_of(world, path, "sharded")
    bench.folder = world.tmp_path  # both see the one log
    made, computed = bench.make(request, "one", writes=world.rank == 0)
    assert torch.equal(made, expected) and computed == 4
    bench.pipeline.lockstep.meet("the log is whole")
    made, computed = bench.make(request, "one", writes=world.rank == 0)
    assert torch.equal(made, expected) and computed == 0


@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("asked", [0, 1])
@on_ranks(2)
def test_ranks_of_one_copy_stop_inside_together_whoever_is_asked(
    world: World, path: Path, asked: int, calls: int
) -> None:
    request, expected = request_of("flux", world.rank), stock_bits("flux", path, world.rank)
    bench = bench_of(world, path, "sharded")

    def time_left() -> float | None:
        return 0.0 if world.rank == asked and bench.computed >= calls else None

    with pytest.raises(StoppedInside if world.rank == asked else PeerLeft):
        bench.make(request, "stopped", time_left=time_left)
    assert bench.records("stopped") == calls
    made, computed = bench.make(request, "stopped")
    assert torch.equal(made, expected) and computed == 4 - calls


STEPS = 300


def arguments(output: Path, *more: str) -> list[str]:
    """One request, of many calls of 40 ms."""
    return ["job.prompt=a rocket", "job.images_per_prompt=1", f"job.call.num_inference_steps={STEPS}",
            "job.format=npy", f"job.output={output}", *more]  # fmt: skip


def picture(output: Path) -> np.ndarray:
    (line,) = [json.loads(line) for line in lines(output / "manifest.jsonl")]
    return np.load(output / line["file"])


def records(output: Path) -> int:
    return sum(count_records(log) for log in (output / "calls").glob("*.log"))


def report(output: Path) -> dict[str, Any]:
    return json.loads((output / "run.json").read_text())


def wait_for_records(output: Path, number: int, process: subprocess.Popen[str]) -> None:
    while records(output) < number:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.mark.slow
def test_a_real_job_is_killed_and_asked_to_stop_and_ends_with_one_picture_and_the_work_of_one(tmp_path: Path) -> None:
    """SIGKILL, then SIGTERM, then SIGKILL and SIGTERM of two ranks that go on with sharded weights, then a rank with
    offloaded ones. Each kill costs what was not yet flushed, a polite stop nothing."""
    generate = str(ROOT / "configs" / "generate.yaml")
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "out"
    run_plain([generate, *arguments(undisturbed, "job.resume_inside=false")])
    assert not (undisturbed / "calls").exists()

    on = arguments(output, "job.resume_inside=true", "job.grace_seconds=2", "job.max_attempts=1")
    process = start_alone(output, [generate, *on], begun=1)
    wait_for_records(output, 30, process)
    process.kill()
    process.communicate()
    killed = records(output)

    process = start_alone(output, [generate, *on], begun=2)
    wait_for_records(output, killed + 20, process)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=30)[1]
    stopped = records(output)
    assert process.returncode == 3 and f"{killed} calls replayed" in told and f"{stopped} calls are kept" in told
    log = report(output)["ranks"][0]["call_log"]
    assert (log["calls_replayed"], log["calls_logged"], log["calls_left"]) == (killed, stopped - killed, stopped)

    # The other rank has filler work: it reads the same log.
    job = Job(output, [generate, *on, "placement.default.share=shard"], num_ranks=2)
    try:
        assert job.wait_for(lambda: records(output) >= stopped + 20), job.log.read_text()
        job.agent.kill()
        for worker in job.workers():
            worker.kill()
        job.gone_after(20)
    finally:
        job.kill()
    lost = records(output)
    assert stopped < lost < STEPS

    job = Job(output, [generate, *on, "placement.default.share=shard"], num_ranks=2)
    try:
        assert job.wait_for(lambda: records(output) >= lost + 20), job.log.read_text()
        job.agent.send_signal(signal.SIGTERM)
        job.gone_after(30)
    finally:
        job.kill()
    assert report(output)["state"] == "stopped"
    left = [rank["call_log"]["calls_left"] for rank in report(output)["ranks"]]
    assert sum(left) == records(output) and lost < records(output) < STEPS
    lost = records(output)

    run_plain([generate, *on, "placement.default.rest=disk"])
    log = report(output)["ranks"][0]["call_log"]
    assert (log["calls_replayed"], log["calls_logged"]) == (lost, STEPS - lost)
    assert np.array_equal(picture(output), picture(undisturbed)) and not (output / "calls").exists()
