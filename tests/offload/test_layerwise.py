"""Which bytes cross when, what is on the device, and what goes wrong without harm."""

import contextlib
import inspect
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from memory_store import MemoryStore
from offload_models import Stack, example
from torch import nn

from offload import Offloaded, StoreError, WeightAway, is_offloaded, offload, offloader_of
from offload.away import is_away
from offload.thread_engine import ThreadEngine

CPU = torch.device("cpu")


def offloaded_stack(num_blocks: int = 5, views: bool = False, **options: Any) -> tuple[Stack, MemoryStore, Offloaded]:
    model = Stack(num_blocks)
    store = MemoryStore(model, views=views)
    return model, store, offload(model, store, device=CPU, **options)


def plain_output(num_blocks: int = 5, order: Any = None) -> torch.Tensor:
    with torch.no_grad():
        return Stack(num_blocks)(example(), order)


def block_bytes(store: MemoryStore) -> int:
    return sum(packing.num_bytes for unit, packing in store.packings.items() if unit.startswith("blocks."))


@pytest.mark.parametrize("resident_blocks", [0, 2])
@pytest.mark.parametrize("window", [1, 2, 3])
@torch.no_grad()
def test_each_byte_crosses_once_a_pass(window: int, resident_blocks: int) -> None:
    model, store, offloaded = offloaded_stack(7, window=window, resident_blocks=resident_blocks)
    kept = sum(slot.buffer.numel() for name, slot in offloaded._resident.items() if name != "buffers")
    model(example())  # fetches the head twice: for itself, and for the next pass
    for _ in range(4):
        before = offloaded.traffic.num_bytes
        model(example())
        assert offloaded.traffic.num_bytes - before == block_bytes(store) - kept
    assert offloaded.traffic.demand_fetches == 0


@torch.no_grad()
def test_the_whole_component_crosses_once_a_stage() -> None:
    model, store, offloaded = offloaded_stack(window="all")
    for stage in (1, 2):
        for _ in range(3):
            model(example())
        assert offloaded.traffic.num_bytes == stage * block_bytes(store)
        offloaded.end()


@torch.no_grad()
def test_a_component_called_once_a_stage_has_its_head_fetched_once() -> None:
    """From the second stage on: the end is expected where the last one was."""
    model, store, offloaded = offloaded_stack()
    model(example())
    offloaded.end()
    for _ in range(3):
        before = offloaded.traffic.num_bytes
        model(example())
        offloaded.end()
        assert offloaded.traffic.num_bytes - before == block_bytes(store)
    assert offloaded.traffic.demand_fetches == 0


@pytest.mark.parametrize(
    "order",
    [[4, 3, 2, 1, 0], [0, 2, 4], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [2, 3, 2, 3, 4], [0, 3, 1, 4, 2]],
    ids=["reversed", "skipped", "repeated", "looped", "interleaved"],
)
@torch.no_grad()
def test_an_undeclared_order_is_learnt(order: list[int]) -> None:
    model, _, offloaded = offloaded_stack()
    for _ in range(3):
        assert torch.equal(model(example(), order), plain_output(order=order))
    demands, fetched = offloaded.traffic.demand_fetches, offloaded.traffic.fetches
    for _ in range(4):
        assert torch.equal(model(example(), order), plain_output(order=order))
    assert offloaded.traffic.demand_fetches == demands
    assert offloaded.traffic.fetches - fetched <= 4 * len(order)


@torch.no_grad()
def test_passes_that_alternate_are_learnt() -> None:
    """As with guidance that skips layers in every second call."""
    model, _, offloaded = offloaded_stack()
    orders = [[0, 1, 2, 3, 4], [0, 1, 3, 4]]
    for order in orders * 3:
        model(example(), order)
    demands = offloaded.traffic.demand_fetches
    for order in orders * 3:
        assert torch.equal(model(example(), order), plain_output(order=order))
    assert offloaded.traffic.demand_fetches == demands


@pytest.mark.parametrize("resident_blocks", [0, 2, 5])
@pytest.mark.parametrize("window", [1, 2, 9, "all"])
@torch.no_grad()
def test_memory_stays_within_the_bound(window: int | Literal["all"], resident_blocks: int) -> None:
    model, store, offloaded = offloaded_stack(window=window, resident_blocks=resident_blocks)
    shifts = sum(block.shift.nbytes for block in model.blocks)
    largest = max(packing.num_bytes for packing in store.packings.values())
    seen: list[tuple[int, int]] = []

    def look(*_: object) -> None:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in weights_that_are_there(model)}
        seen.append((sum(storages.values()), offloaded.bytes_on_device))

    for block in model.blocks:
        block.up.register_forward_hook(look)
    assert offloaded.bytes_on_device == offloaded.bytes_at_rest
    model(example())
    assert len(seen) == 5
    assert all(observed <= stated <= offloaded.bytes_bound for observed, stated in seen)
    if window in (1, 2) and resident_blocks == 0:
        outside = store.packings[""].num_bytes + store.packings["buffers"].num_bytes + shifts
        assert offloaded.bytes_bound == outside + window * largest
    offloaded.end()
    assert offloaded.bytes_on_device == offloaded.bytes_at_rest
    if resident_blocks == 0:
        assert offloaded.bytes_at_rest == store.packings["buffers"].num_bytes + shifts


def weights_that_are_there(model: nn.Module) -> list[torch.Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if not is_away(t)]


@torch.no_grad()
def test_blocks_are_there_only_while_they_run() -> None:
    model, _, _ = offloaded_stack()
    there: list[list[int]] = []

    def look(*_: object) -> None:
        there.append([i for i, block in enumerate(model.blocks) if not is_away(block.up.weight)])

    for block in model.blocks:
        block.down.register_forward_hook(look)
    model(example())
    assert there == [[0], [1], [2], [3], [4]]


@torch.no_grad()
def test_begin_prefetch_and_end_in_any_order() -> None:
    model, _, offloaded = offloaded_stack()
    offloaded.end()
    offloaded.prefetch_head()
    assert not offloaded.is_up
    offloaded.prefetch_head()
    offloaded.begin()
    offloaded.begin()
    assert offloaded.is_up and offloaded.traffic.fetches == 2
    assert torch.equal(model(example()), plain_output())
    offloaded.end()
    offloaded.end()
    offloaded.prefetch_head()
    offloaded.end()
    assert offloaded.bytes_on_device == offloaded.bytes_at_rest
    assert torch.equal(model(example()), plain_output())


def test_a_block_alone_can_be_called() -> None:
    model, _, offloaded = offloaded_stack()
    with torch.inference_mode():
        assert torch.equal(model.blocks[3](example()), Stack().blocks[3](example()))
        with pytest.raises(WeightAway, match=r"embed.weight"):
            model.embed(example())
    offloaded.end()


@pytest.mark.parametrize("order", ["II", "IN", "NI", "NN"])
def test_modes_mix_and_leave_no_inference_tensor(order: str) -> None:
    model, _, offloaded = offloaded_stack(resident_blocks=1)
    modes: list[tuple[bool, bool]] = []
    model.blocks[1].up.register_forward_hook(
        lambda *_: modes.append((torch.is_inference_mode_enabled(), model.blocks[1].up.weight.is_inference()))
    )
    for mode in order:
        with torch.inference_mode() if mode == "I" else torch.no_grad():
            output = model(example())
            assert torch.equal(output, plain_output())
            assert output.is_inference() == (mode == "I")
        if mode == "I":
            offloaded.end()
        slots = [*offloaded._resident.values(), *(offloaded._ring._slots if offloaded._ring else [])]
        tensors = [*model.parameters(), *model.buffers(), *(slot.buffer for slot in slots)]
        assert not any(tensor.is_inference() for tensor in tensors)
    assert modes == [(mode == "I", False) for mode in order]


def test_autograd_stays_off_for_weights() -> None:
    model, _, _ = offloaded_stack()
    assert not model(example()).requires_grad  # also where the caller forgot no_grad


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


class Plain(nn.Module):
    """No blocks, and two entry points."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)

    def encode(self, x: torch.Tensor, *, scale: float = 2.0) -> torch.Tensor:
        return self.layer(x) * scale

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("window", [1, "all"])
@torch.no_grad()
def test_a_component_without_blocks_comes_and_goes_whole(window: int | Literal["all"]) -> None:
    model = Plain()
    offloaded = offload(model, MemoryStore(model), device=CPU, window=window)
    assert offloaded.bytes_bound == offloaded.num_bytes
    assert list(inspect.signature(model.encode).parameters) == ["x", "scale"]
    for call in (model.encode, model.decode):
        assert torch.equal(call(example()), getattr(Plain(), call.__name__)(example()))
        assert offloaded.is_up
        offloaded.end()
        assert offloaded.bytes_on_device == 0
    offloaded.remove()
    assert "encode" not in vars(model)


def test_signatures_stay() -> None:
    model, _, _ = offloaded_stack()
    assert list(inspect.signature(model.forward).parameters) == ["x", "order"]
    assert list(inspect.signature(model.blocks[0].forward).parameters) == ["x", "inside"]


def test_what_is_offloaded_is_read_off_the_module() -> None:
    model, store, offloaded = offloaded_stack()
    assert is_offloaded(model) and offloader_of(model) is offloaded
    assert not is_offloaded(Stack()) and not is_offloaded(model.blocks[0])
    with pytest.raises(ValueError, match="offloaded already"):
        offload(model, store, device=CPU)
    with pytest.raises(ValueError, match="offloaded already"):
        offload(model.blocks[0], MemoryStore(Stack().blocks[0]), device=CPU)
    offloaded.remove()
    assert not is_offloaded(model) and offloader_of(model) is None


@pytest.mark.parametrize("window", [0, -1, "some", None])
def test_a_wrong_window_is_refused(window: Any) -> None:
    with pytest.raises(ValueError, match="window="):
        offloaded_stack(window=window)


def test_wrong_numbers_of_resident_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="choose 0 to 5"):
        offloaded_stack(resident_blocks=6)


def test_a_store_of_another_module_is_refused() -> None:
    model = Stack(5)
    with pytest.raises(ValueError, match=r"blocks.4.* only the module has blocks.4.down.bias"):
        offload(model, MemoryStore(Stack(4)), device=CPU)
    with pytest.raises(ValueError, match=r"blocks.0.scale is .*float32 in the module and .*float64 in the store"):
        offload(model, MemoryStore(Stack(5).double()), device=CPU)
    assert torch.equal(model(example()), plain_output())


def test_inference_tensors_and_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = Stack()
        with pytest.raises(RuntimeError, match="refusing to offload"):
            offload(model, MemoryStore(Stack()), device=CPU)
    with pytest.raises(ValueError, match="is an inference tensor"):
        offload(model, MemoryStore(Stack()), device=CPU)
