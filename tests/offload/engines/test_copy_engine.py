"""The engines fill buffers with the right bytes, in order, on threads and on a real accelerator where there is one."""

import threading
from concurrent.futures import CancelledError

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef

from offload import StoreError, engine_for, offload
from offload.engines.inline import InlineEngine
from offload.engines.stream import StreamEngine, has_streams
from offload.engines.thread import ThreadEngine
from tests.offload.memory_store import MemoryStore
from tests.offload.offload_models import Stack, example
from weights.modes import normal_mode

CPU = torch.device("cpu")


def accelerator() -> torch.device:
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None or not has_streams(device):
        pytest.skip("needs an accelerator with streams")
    return torch.device(device.type, 0)


def test_the_cpu_gets_threads() -> None:
    engine = engine_for(CPU)
    assert isinstance(engine, ThreadEngine)
    assert not has_streams(CPU)
    engine.close()
    engine.close()


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("engine_type", [ThreadEngine, InlineEngine])
def test_a_copy_brings_the_unit(engine_type: type[ThreadEngine] | type[InlineEngine], views: bool) -> None:
    store, engine = MemoryStore(Stack(), views=views), engine_type(CPU)
    with torch.inference_mode(), normal_mode():
        buffer = engine.empty(store.packings["blocks.1"].num_bytes + 512)
    for unit in ("blocks.0", "blocks.1", "blocks.0", "", "blocks.1"):
        mark = engine.copy(store, unit, buffer, after=())
        engine.wait(mark)
        engine.wait(mark)
        assert torch.equal(buffer[: store.packings[unit].num_bytes], store.bytes[unit])
    engine.free(buffer, after=(mark,))
    assert not buffer.is_inference()
    engine.close()


@pytest.mark.parametrize("engine_type", [ThreadEngine, InlineEngine])
def test_the_host_goes_on_while_a_thread_reads(engine_type: type[ThreadEngine] | type[InlineEngine]) -> None:
    store, engine = MemoryStore(Stack(), views=False), engine_type(CPU)
    store.may_read.clear()
    buffers = [engine.empty(store.packings["blocks.1"].num_bytes) for _ in range(3)]
    marks = [engine.copy(store, f"blocks.{i}", buffer, after=()) for i, buffer in enumerate(buffers)]
    assert not any(mark.done() for mark in marks)
    again = engine.copy(store, "blocks.3", buffers[2], after=(marks[2],))
    assert marks[2].cancelled()  # it had not begun, and nobody will use it
    store.may_read.set()
    engine.wait(again)
    assert store.reads == ["blocks.0", "blocks.1", "blocks.3"]
    assert torch.equal(buffers[2][: store.packings["blocks.3"].num_bytes], store.bytes["blocks.3"])
    with pytest.raises(CancelledError):
        engine.wait(marks[2])
    engine.close()


def test_free_waits_for_the_thread_that_writes() -> None:
    store, engine = MemoryStore(Stack(), views=False), ThreadEngine(CPU)
    store.may_read.clear()
    buffer = engine.empty(store.packings["blocks.1"].num_bytes)
    mark = engine.copy(store, "blocks.1", buffer, after=())
    threading.Timer(0.1, store.may_read.set).start()
    engine.free(buffer, after=(mark,))
    assert mark.done()
    engine.close()


@pytest.mark.parametrize("end", ["copied", "cancelled", "failed"])
@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "read by several ranks"])
def test_nothing_holds_a_buffer_that_is_freed(end: str, is_shared: bool) -> None:
    """The next component has its memory then, also while the thread is busy with another copy."""
    store, engine = MemoryStore(Stack(), views=False), ThreadEngine(CPU)
    store.readers = dist.ProcessGroup(0, 1) if is_shared else None  # such a copy is never cancelled
    store.broken = {"blocks.1"} if end == "failed" else set()
    buffer = engine.empty(store.packings["blocks.1"].num_bytes)
    memory = StorageWeakRef(buffer.untyped_storage())
    if end == "cancelled":
        store.may_read.clear()
        under_way = engine.copy(store, "blocks.0", engine.empty(store.packings["blocks.0"].num_bytes), after=())
    mark = engine.copy(store, "blocks.1", buffer, after=())
    if is_shared:
        store.may_read.set()
    engine.free(buffer, after=(mark,))
    del buffer
    assert memory.expired()
    store.may_read.set()
    engine.close()
    assert end != "cancelled" or under_way.done()


@pytest.mark.parametrize("engine_type", [ThreadEngine, InlineEngine])
def test_a_failed_copy_is_told_to_who_waits_only(engine_type: type[ThreadEngine] | type[InlineEngine]) -> None:
    store, engine = MemoryStore(Stack(), views=False), engine_type(CPU)
    store.broken = {"blocks.1"}
    buffer = engine.empty(store.packings["blocks.1"].num_bytes)
    failed = engine.copy(store, "blocks.1", buffer, after=())
    right = engine.copy(store, "blocks.2", buffer, after=(failed,))
    engine.wait(right)
    failed = engine.copy(store, "blocks.1", buffer, after=(right,))
    with pytest.raises(StoreError, match=r"blocks\.1"):
        engine.wait(failed)
    engine.free(buffer, after=(failed,))
    engine.close()


@pytest.mark.parametrize("views", [False, True])
@torch.no_grad()
def test_a_device_with_one_queue_gives_the_same_bits(views: bool) -> None:
    model = Stack()
    offloaded = offload(model, MemoryStore(model, views=views), device=CPU, engine=InlineEngine(CPU))
    for _ in range(3):
        for order in (None, [4, 2, 2, 0], [[0, 1], 3]):
            assert torch.equal(model(example(), order), Stack()(example(), order))
        offloaded.end()


def test_a_component_closes_the_engine_that_it_made() -> None:
    shared = ThreadEngine(CPU)
    for engine in (None, shared):
        model = Stack()
        offloaded = offload(model, MemoryStore(model), device=CPU, engine=engine)
        offloaded.remove()
        assert offloaded._engine._threads._shutdown == (engine is None)  # type: ignore[attr-defined]
    shared.close()


@pytest.mark.gpu
@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("window", [1, 2, "all"])
def test_an_accelerator_gives_the_bits_of_the_resident_module(views: bool, window: object) -> None:
    device = accelerator()
    plain = big_stack().to(device)
    x = torch.randn(512, 8, device=device)
    with torch.inference_mode():
        expected = plain(x)
    model = big_stack()
    store = MemoryStore(model, views=views)
    if views:
        store.bytes = {unit: data.pin_memory() for unit, data in store.bytes.items()}
    offloaded = offload(model, store, device=device, window=window)  # type: ignore[arg-type]
    for i in range(20):
        with torch.inference_mode() if i % 2 else torch.no_grad():
            output = model(x)
            if i % 5 == 4:
                offloaded.end()
                torch.full((1 << 20,), float("nan"), device=device)  # takes the memory that the ring had
            assert torch.equal(output, expected), i
    offloaded.remove()
    with torch.inference_mode():
        assert torch.equal(model(x), expected)


@pytest.mark.gpu
@torch.no_grad()
def test_an_accelerator_holds_no_more_than_the_bound() -> None:
    device = accelerator()
    model = big_stack()
    torch.accelerator.empty_cache()
    before = torch.accelerator.memory_allocated(device)
    offloaded = offload(model, MemoryStore(model), device=device)
    assert isinstance(offloaded._engine, StreamEngine)
    x = torch.randn(1, 8, device=device)
    torch.accelerator.reset_peak_memory_stats(device)
    for _ in range(3):
        model(x)
    torch.accelerator.synchronize(device)
    peak = torch.accelerator.max_memory_allocated(device) - before
    assert peak <= offloaded.bytes_bound + 2 * 2**20
    offloaded.end()
    assert torch.accelerator.memory_allocated(device) - before <= offloaded.bytes_at_rest + 2**20


def big_stack() -> Stack:
    """Blocks of several megabytes: a copy takes longer than to queue what would race with it."""
    torch.manual_seed(0)
    model = Stack(6)
    for block in model.blocks:
        block.up = torch.nn.Linear(8, 1 << 17)
        block.down = torch.nn.Linear(1 << 17, 8)
    return model
