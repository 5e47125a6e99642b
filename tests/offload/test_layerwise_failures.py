"""Read errors, Ctrl-C and lack of memory: said by name, and done no harm."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from offload import StoreError, is_offloaded, offload
from offload.engines.thread import ThreadEngine
from offload.placeholder import is_away
from tests.offload.layerwise_stack import CPU, offloaded_stack, plain_output
from tests.offload.memory_store import MemoryStore
from tests.offload.offload_models import Stack, example


@pytest.mark.parametrize("unit", ["", "blocks.0", "blocks.3", "buffers"])
@torch.no_grad()
def test_a_read_error_names_the_tensor_and_does_no_harm(unit: str) -> None:
    model = Stack()
    store = MemoryStore(model, views=False)
    store.broken = {"buffers"} & {unit}
    if store.broken:
        with pytest.raises(StoreError, match="mean cannot be read"):
            offload(model, store, device=CPU)
        assert not is_offloaded(model)
        assert torch.equal(model(example()), plain_output())
        return
    offloaded = offload(model, store, device=CPU)
    for _ in range(2):
        store.broken = {unit}
        for _ in range(2):
            with pytest.raises(StoreError, match=next(iter(store.plan[unit]))):
                model(example())
                offloaded.end()  # "" is up from the second round on
                model(example())
        store.broken = set()
        assert torch.equal(model(example()), plain_output())


@torch.no_grad()
def test_an_error_in_a_prefetch_that_nobody_needs_is_none() -> None:
    model, store, offloaded = offloaded_stack()
    store.broken = {"blocks.3"}
    for _ in range(2):
        assert torch.equal(model(example(), [0, 1, 2, 4]), plain_output(order=[0, 1, 2, 4]))
    offloaded.end()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also in a shell's background job, which is born ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@torch.no_grad()
def test_ctrl_c_while_waiting_for_a_block_does_no_harm() -> None:
    model, store, offloaded = offloaded_stack()
    for _ in range(3):
        offloaded.begin()
        model(example())
        store.may_read.clear()
        main = threading.main_thread().ident
        assert main is not None

        def interrupt(main: int = main) -> None:
            time.sleep(0.1)
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.05)
            store.may_read.set()

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            model(example())
        thread.join()
        assert torch.equal(model(example()), plain_output())
        offloaded.end()


@torch.no_grad()
def test_ctrl_c_in_a_block_does_no_harm() -> None:
    model, _, offloaded = offloaded_stack()
    handle = model.blocks[2].up.register_forward_hook(interrupt_once := Interrupt())
    for _ in range(3):
        interrupt_once.armed = True
        with pytest.raises(KeyboardInterrupt):
            model(example())
        assert all(is_away(block.up.weight) for block in model.blocks)
        assert offloaded.bytes_on_device <= offloaded.bytes_bound
        assert torch.equal(model(example()), plain_output())
    handle.remove()


class Interrupt:
    armed = False

    def __call__(self, *_: object) -> None:
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt


class InterruptedEngine(ThreadEngine):
    """Ctrl-C at the `countdown`-th thing that it is asked to do, before or after it did it."""

    countdown = 0
    before = True

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        return self.interrupted(method) if name in ("empty", "mark", "copy", "wait", "free") else method

    def interrupted(self, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.countdown -= 1
            if self.countdown == 0 and self.before:
                raise KeyboardInterrupt
            result = method(*args, **kwargs)
            if self.countdown == 0:
                raise KeyboardInterrupt
            return result

        return call


@pytest.mark.parametrize("before", [False, True])
@torch.no_grad()
def test_ctrl_c_at_any_step_of_the_engine_does_no_harm(before: bool) -> None:
    model, engine = Stack(), InterruptedEngine(CPU)
    offloaded = offload(model, MemoryStore(model, views=False), device=CPU, engine=engine)
    engine.before, expected, interrupts = before, plain_output(), 0
    for countdown in range(1, 35):
        engine.countdown = countdown
        try:
            model(example())
            offloaded.end()
        except KeyboardInterrupt:
            interrupts += 1
        engine.countdown = 0
        assert torch.equal(model(example()), expected)
        assert offloaded.bytes_on_device <= offloaded.bytes_bound
        offloaded.end()
        assert all(map(is_away, model.parameters()))
    assert interrupts > 25
    assert torch.equal(offloaded.remove()(example()), expected)


@torch.no_grad()
def test_an_error_caught_inside_the_forward_does_no_harm() -> None:
    model, _, _ = offloaded_stack(window=1)

    def inside(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("inside")

    class Catching(Stack):
        def run(self, x: torch.Tensor, nested: Any) -> torch.Tensor:
            with contextlib.suppress(ValueError):
                x = self.blocks[nested[0]](x, inside)
            return super().run(x, nested)

    model.__class__ = Catching
    assert torch.equal(model(example()), plain_output())


@torch.no_grad()
def test_a_ring_that_does_not_fit_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    model, store, offloaded = offloaded_stack(window=3)
    largest = max(packing.num_bytes for packing in store.packings.values())
    empty = offloaded._engine.empty

    def too_little(num_bytes: int) -> torch.Tensor:
        if num_bytes == largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(num_bytes)

    monkeypatch.setattr(offloaded._engine, "empty", too_little)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        model(example())
    assert f"largest block has {largest}" in caught.value.__notes__[0] and "smaller window" in caught.value.__notes__[0]
    assert offloaded.bytes_on_device == offloaded.bytes_at_rest
    monkeypatch.undo()
    assert torch.equal(model(example()), plain_output())
