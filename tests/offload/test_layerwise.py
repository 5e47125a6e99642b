"""Which bytes cross when, what is on the device meanwhile, and what is refused."""

import inspect
from typing import Any, Literal

import pytest
import torch
from torch import nn

from offload import WeightAway, is_offloaded, offload, offloader_of
from offload.engines.thread import ThreadEngine
from offload.placeholder import is_away
from tests.offload.layerwise_stack import CPU, offloaded_stack, plain_output
from tests.offload.memory_store import MemoryStore
from tests.offload.offload_models import Stack, example


def block_bytes(store: MemoryStore) -> int:
    return sum(packing.num_bytes for unit, packing in store.packings.items() if unit.startswith("blocks."))


@pytest.mark.parametrize("resident_blocks", [0, 2])
@pytest.mark.parametrize("window", [1, 2, 3])
@torch.no_grad()
def test_each_byte_crosses_once_a_pass(window: int, resident_blocks: int) -> None:
    model, store, offloaded = offloaded_stack(7, window=window, resident_blocks=resident_blocks)
    kept = sum(slot.buffer.numel() for name, slot in offloaded._resident.slots.items() if name != "buffers")
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


@torch.no_grad()
def test_what_comes_up_ahead_is_read_after_what_the_stage_needs_itself() -> None:
    """One engine reads for both, one unit after the other; where the end of the stage is not known, after the call."""
    model, later = Stack(), Stack()
    store, after, reads = MemoryStore(model, views=False), MemoryStore(later, views=False), []
    store.reads = after.reads = reads
    engine = ThreadEngine(CPU)
    first, second = (offload(m, s, device=CPU, engine=engine) for m, s in ((model, store), (later, after)))
    own = ["", *(f"blocks.{n}" for n in range(5))]
    for stage in (1, 2, 3):
        reads.clear()
        first.when_all_is_asked_for(second.prefetch_head)
        assert torch.equal(model(example()), plain_output())
        first.end()
        first.when_all_is_asked_for(second.prefetch_head)
        first.end()  # a stage without a call: nothing is told
        again = ["blocks.0", "blocks.1"] if stage == 1 else []  # the next pass, which did not come
        assert [*own, *again, "blocks.0", "blocks.1"] == reads
        assert torch.equal(later(example()), plain_output())
        second.end()
    engine.close()


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
        slots = [*offloaded._resident.slots.values(), *(offloaded._ring._slots if offloaded._ring else [])]
        tensors = [*model.parameters(), *model.buffers(), *(slot.buffer for slot in slots)]
        assert not any(tensor.is_inference() for tensor in tensors)
    assert modes == [(mode == "I", False) for mode in order]


def test_autograd_stays_off_for_weights() -> None:
    model, _, _ = offloaded_stack()
    assert not model(example()).requires_grad  # also where the caller forgot no_grad


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
