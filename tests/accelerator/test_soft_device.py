"""The software accelerator itself: what it refuses, what it does late, and what it reports."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.accelerator import soft
from tests.ranks import World, on_ranks

ROOT = Path(__file__).resolve().parents[2]
SIZE = 1000


def ones(device: torch.device) -> torch.Tensor:
    return torch.ones(SIZE, device=device)


@on_ranks(1, soft=True)
def test_torch_finds_it(world: World) -> None:
    assert torch.accelerator.current_accelerator() == torch.device("soft")
    assert torch.accelerator.device_count() == 2
    stream = torch.Stream(device=world.device)
    assert stream != torch.accelerator.current_stream()
    with stream:
        assert torch.accelerator.current_stream() == stream
    assert torch.accelerator.current_stream() != stream


@pytest.mark.parametrize("access", ["read", "write"])
def test_device_memory_faults_where_the_cpu_touches_it(access: str, soft_is_built: None) -> None:
    code = (
        "import ctypes, torch; from tests.accelerator import soft; soft.register(); "
        "x = torch.zeros(4, device='soft'); "
        + ("ctypes.string_at(x.data_ptr(), 1)" if access == "read" else "ctypes.memset(x.data_ptr(), 0, 1)")
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode < 0
    assert "the CPU touched device memory" in ended.stderr


@on_ranks(1, soft=True)
def test_fresh_memory_is_nan_also_where_it_was_used_before(world: World) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for _ in range(2):
            assert torch.empty(SIZE, dtype=dtype, device=world.device).isnan().all()
            ones(world.device)


@on_ranks(1, soft=True)
def test_kernels_give_the_bits_of_the_cpu(world: World) -> None:
    torch.manual_seed(0)
    x, image = torch.randn(3, 17, 8), torch.randn(2, 4, 9, 9)
    layers = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 8))
    convolution = nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.SiLU())

    def results(device: torch.device) -> list[torch.Tensor]:
        a, b = x.to(device), image.to(device)
        q = a.view(3, 17, 2, 4).transpose(1, 2)
        spread = torch.zeros(17, 8, device=device)
        spread[torch.tensor([3, 1], device=device)] = a[0, :2]
        return [
            layers.to(device)(a),
            convolution.to(device)(b),
            nn.functional.scaled_dot_product_attention(q, q, q),
            torch.cat([a, a.flip(1)], dim=1).softmax(-1),
            torch.view_as_complex(a.view(3, 17, 4, 2)).abs(),
            nn.functional.interpolate(b, scale_factor=2.0, mode="nearest"),
            torch.arange(7, device=device) * 0.3 + torch.linspace(0, 1, 7, device=device),
            spread,
            a.bfloat16() @ a.bfloat16().mT,
        ]

    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            on_cpu = results(torch.device("cpu"))
            for i, (made, expected) in enumerate(zip(results(world.device), on_cpu, strict=True)):
                assert made.device == world.device
                assert torch.equal(made.cpu(), expected), f"{mode.__name__}, result {i}"


@on_ranks(1, soft=True)
def test_a_copy_runs_as_late_as_it_may(world: World) -> None:
    source, target = torch.ones(SIZE).pin_memory(), torch.empty(SIZE, device=world.device)
    copies = torch.Stream(device=world.device)
    copies.wait_event(torch.accelerator.current_stream().record_event())
    with copies:
        target.copy_(source, non_blocking=True)
    copied = copies.record_event()
    assert (target * 1).isnan().all(), "nothing made the reader wait"
    (report,) = soft.reports()
    assert "copy (writes), on stream" in report and "aten::mul (reads), on stream 0" in report
    assert report.count(f"{__file__}:") == 2, "both places"
    torch.accelerator.current_stream().wait_event(copied)
    assert (target * 1 == 1).all()


@on_ranks(1, soft=True)
def test_what_events_order_is_not_reported(world: World) -> None:
    source, target = torch.ones(SIZE).pin_memory(), torch.empty(SIZE, device=world.device)
    copies, compute = torch.Stream(device=world.device), torch.accelerator.current_stream()
    for _ in range(3):
        copies.wait_event(compute.record_event())
        with copies:
            target.copy_(source, non_blocking=True)
        compute.wait_event(copies.record_event())
        assert (target * 2 == 2).all()


@on_ranks(1, soft=True)
def test_a_write_after_an_unawaited_read_is_reported(world: World) -> None:
    """Kernels run at once here, so the bits are right: only the order tells."""
    source, target = torch.ones(SIZE).pin_memory(), ones(world.device)
    copies, compute = torch.Stream(device=world.device), torch.accelerator.current_stream()
    copies.wait_event(compute.record_event())
    target * 2
    with copies:
        target.copy_(source, non_blocking=True)
    (report,) = soft.reports()
    assert "aten::mul (reads)" in report and "copy (writes)" in report


@on_ranks(1, soft=True)
def test_memory_that_is_freed_while_a_stream_uses_it_is_reported(world: World) -> None:
    other, compute = torch.Stream(device=world.device), torch.accelerator.current_stream()

    def use(*, record: bool = False, wait: bool = False) -> list[str]:
        target = ones(world.device)
        other.wait_event(compute.record_event())
        with other:
            target.zero_()
        if record:
            target.record_stream(other)
        if wait:
            compute.wait_event(other.record_event())
        del target
        assert not soft.reports(), "it may still be awaited"
        assert (ones(world.device) == 1).all()
        return soft.reports()

    assert use(record=True) == use(wait=True) == []
    (report,) = use()
    assert "memory was freed" in report and "aten::zero_ (writes)" in report


@on_ranks(1, soft=True)
def test_the_host_must_wait_before_it_touches_a_pinned_source_or_target(world: World) -> None:
    pinned, target = torch.ones(SIZE).pin_memory(), torch.empty(SIZE, device=world.device)
    assert pinned.is_pinned() and not torch.ones(SIZE).is_pinned()
    target.copy_(pinned, non_blocking=True)
    assert pinned.sum() == SIZE, "reading a source is fine"
    pinned.fill_(2)
    (report,) = soft.reports()
    assert "the host touches page-locked memory" in report
    assert (target == 2).all(), "the copy was late"
    for read in (True, False):
        into = torch.zeros(SIZE).pin_memory()
        into.copy_(target, non_blocking=True)
        if read:
            assert into.sum() == 0, "the copy is late"
            (report,) = soft.reports()
        torch.accelerator.synchronize()
        assert into.sum() == 2 * SIZE


@on_ranks(1, soft=True)
def test_pageable_memory_is_the_callers_again_at_once(world: World) -> None:
    source = torch.ones(SIZE)
    target = source.to(world.device, non_blocking=True)
    source.fill_(2)
    assert (target == 1).all()
    assert target.cpu().sum() == SIZE


@on_ranks(1, soft=True)
def test_host_threads_are_ordered_by_what_they_hand_over(world: World) -> None:
    """Another thread waited for the copy, and this one for that thread."""
    pinned, target = torch.ones(SIZE).pin_memory(), torch.empty(SIZE, device=world.device)
    compute = torch.accelerator.current_stream()

    def wait(event: torch.Event) -> None:
        event.synchronize()

    target.copy_(pinned, non_blocking=True)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(wait, compute.record_event()).result()
    pinned.fill_(2)
    target.copy_(pinned, non_blocking=True)
    thread = threading.Thread(target=wait, args=(compute.record_event(),))
    thread.start()
    thread.join()
    pinned.fill_(3)


def test_threads_that_nobody_waits_for_may_hand_over_while_the_process_ends(soft_is_built: None) -> None:
    """As a progress bar's does, which is told of the end and not joined."""
    code = """
import threading
from concurrent.futures import Future
from tests.accelerator import soft

def hand_over():
    while True:
        future = Future()
        future.set_result(None)
        future.result()

soft.register()
for _ in range(4):
    threading.Thread(target=hand_over, daemon=True).start()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@on_ranks(1, soft=True)
def test_memory_is_counted_and_bounded(world: World) -> None:
    torch.accelerator.reset_peak_memory_stats()
    before = torch.accelerator.memory_allocated()
    big = torch.empty(1 << 20, dtype=torch.uint8, device=world.device)
    del big
    assert torch.accelerator.memory_allocated() == before
    assert torch.accelerator.max_memory_allocated() == before + (1 << 20)
    assert torch.accelerator.max_memory_allocated(1) == 0, "another device's"
    with pytest.raises(torch.OutOfMemoryError, match="soft:0 is out of memory"):
        torch.empty(1 << 40, dtype=torch.uint8, device=world.device)


@on_ranks(1, soft=True)
def test_two_devices(world: World) -> None:
    first, second = (torch.full((4,), i, device=f"soft:{i}") for i in (0, 1))
    assert first.device.index == 0 and second.device.index == 1
    assert (first.to("soft:1") + second).tolist() == [1] * 4
    with pytest.raises(RuntimeError, match="two devices"):
        first + second


@on_ranks(1, 2, soft=True)
def test_a_collective_is_work_of_a_stream(world: World) -> None:
    mine = torch.full((3,), world.rank, device=world.device)
    expected = [float(rank) for rank in range(world.size) for _ in range(3)]
    for waited in (True, False):
        gathered = torch.empty(3 * world.size, device=world.device)
        work = dist.all_gather_into_tensor(gathered, mine.float(), async_op=True)
        if waited:
            work.wait()
            assert gathered.tolist() == expected
        else:
            assert (gathered * 1).isnan().all(), "it comes as late as it may"
            assert any("_allgather_base_ (writes)" in report for report in soft.reports())
            work.wait()
            assert gathered.tolist() == expected
    dist.broadcast(mine, src=world.size - 1)
    assert mine.tolist() == [world.size - 1] * 3
    dist.all_reduce(mine)
    assert mine.tolist() == [(world.size - 1) * world.size] * 3
    dist.barrier()


@on_ranks(2, soft=True)
def test_what_is_sent_may_be_let_go_of_before_it_has_gone(world: World) -> None:
    """Memory that is freed behind the collective's back would be the next tensor's, while it is still read."""
    received = torch.empty(2, device=world.device)
    work = dist.all_to_all_single(received, torch.full((2,), float(world.rank), device=world.device), async_op=True)
    torch.empty(2, device=world.device)
    work.wait()
    assert received.tolist() == [0, 1]


@on_ranks(1, soft=True)
def test_what_waits_in_a_queue_runs_outside_of_the_modes_of_who_needs_it(world: World) -> None:
    """Page-locked memory that goes has its copies over, also in the middle of a mode that refuses what it sees."""
    source, other = torch.ones(SIZE).pin_memory(), torch.ones(SIZE).pin_memory()
    target = torch.empty(SIZE, device=world.device)
    target.copy_(source, non_blocking=True)
    with Refuses():
        del other
    assert target.cpu().sum() == SIZE


class Refuses(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} is not to be seen here")
