"""The schedule's waits on a simulated device: every order of blocks is right, and each missing wait is caught."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import torch

from offload import Offloaded, offload
from offload.binding import UnitWeights
from offload.engines import stream
from offload.engines.engine import done
from offload.engines.stream import StreamEngine
from offload.ring import Ring, Slot
from tests.offload.engines.simulated_engine import SimulatedEngine, Simulation, Unordered
from tests.offload.memory_store import MemoryStore
from tests.offload.offload_models import Stack, example

CPU = torch.device("cpu")
Window = int | Literal["all"]
ENGINES: dict[str, dict[str, bool]] = {
    "page-locked": {},
    "staged": {"page_locked": False},
    "staged late": {"page_locked": False, "late": True},
}
ORDERS: dict[str, Sequence[Sequence[int | Sequence[int]]]] = {
    "in order": [[0, 1, 2, 3, 4]] * 3,
    "skipped": [[0, 2, 3], [0, 1, 2, 3, 4], [1, 4]],
    "repeated": [[0, 0, 1, 1, 1, 2, 3, 4, 4]] * 2,
    "reordered": [[4, 3, 2, 1, 0], [2, 0, 4, 1, 3], [0, 1, 2, 3, 4]],
    "nested": [[[0, 1], 2, [3, 4, 1]], [[0, 0], [1, 2, 3, 4, 0]]],
    "alternating": [[0, 1, 2, 3, 4], [0, 1, 3, 4]] * 3,
}


@pytest.fixture(autouse=True)
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each unit goes through the staging buffers in several turns."""
    monkeypatch.setattr(stream, "STAGING_BYTES", 1024)


def units_by_weight(store: MemoryStore) -> dict[str, str]:
    return {name: unit for unit, tensors in store.plan.items() for name in tensors}


@contextmanager
def simulated(
    window: Window, engine: str = "page-locked", **options: Any
) -> Iterator[tuple[Stack, Offloaded, Simulation]]:
    model = Stack()
    store = MemoryStore(model, views=engine == "page-locked")
    simulation = Simulation()
    offloaded = offload(
        model, store, device=CPU, window=window, engine=SimulatedEngine(simulation, **ENGINES[engine]), **options
    )
    simulation.capacity = offloaded.bytes_bound
    with torch.no_grad(), simulation.computing(units_by_weight(store)):
        yield model, offloaded, simulation


@pytest.mark.parametrize("engine", ["page-locked", "staged late"])
@pytest.mark.parametrize("window", [1, 2, 3, "all"])
@pytest.mark.parametrize("order", ORDERS)
def test_each_order_is_right(order: str, window: Window, engine: str) -> None:
    plain, x = Stack(), example()
    with torch.no_grad():
        expected = [plain(x, blocks) for blocks in ORDERS[order]]
    for resident in (0, 2):
        with simulated(window, engine, resident_blocks=resident) as (model, offloaded, simulation):
            if order == "nested":
                simulation.capacity = None  # one more slot for each block within a block
            for _ in range(2):
                for blocks, wanted in zip(ORDERS[order], expected, strict=True):
                    assert torch.equal(model(x, blocks), wanted)
                offloaded.end()
                assert simulation.num_bytes + shift_bytes(model) == offloaded.bytes_on_device == offloaded.bytes_at_rest


def shift_bytes(model: Stack) -> int:
    return sum(buffer.nbytes for name, buffer in model.named_buffers() if name.endswith("shift"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("window", [1, 2, "all"])
def test_an_error_half_way_leaves_the_order_right(window: Window, engine: str) -> None:
    plain, x = Stack(), example()
    with torch.no_grad():
        expected = plain(x)
    with simulated(window, engine) as (model, _, simulation):
        simulation.capacity = None
        for failing in ([0, -1], [0, 1, 2, [3, -1]], [[1, 2, -1]], [-1]):
            with pytest.raises(RuntimeError, match="half-way"):
                model(x, failing)
            assert torch.equal(model(x), expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("window", [1, 2, "all"])
def test_two_components_share_an_engine(window: Window, engine: str) -> None:
    x, simulation = example(), Simulation()
    shared = SimulatedEngine(simulation, **ENGINES[engine])
    plain = [Stack(seed=1), Stack(seed=2)]
    with torch.no_grad():
        expected = [model(x) for model in plain]
    models = [Stack(seed=1), Stack(seed=2)]
    stores = [MemoryStore(model) for model in models]
    first, second = (
        offload(model, store, device=CPU, window=window, engine=shared)
        for model, store in zip(models, stores, strict=True)
    )
    with torch.no_grad(), simulation.computing(units_by_weight(stores[0])):
        for _ in range(2):
            first.begin()
            assert torch.equal(models[0](x), expected[0])
            second.prefetch_head()  # in the tail of the first one's stage
            assert torch.equal(models[0](x), expected[0])
            first.end()
            assert torch.equal(models[1](x), expected[1])
            assert torch.equal(models[0](x), expected[0])
            assert torch.equal(models[1](x), expected[1])
            first.end()
            second.end()


Patch = Callable[[pytest.MonkeyPatch], None]


def no_wait_before_use(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Slot, "wait", lambda slot, observer=None: None)


def no_wait_before_reuse(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Slot, "release", lambda slot: None)


def reuse_waits_for_the_last_copy_only(patch: pytest.MonkeyPatch) -> None:
    def fetch(slot: Slot, store: Any, unit: str, edits: Any, observer: Any = None) -> None:
        slot.copied = slot.engine.copy(store, unit, slot.buffer, after=(slot.copied,))
        slot.unit = unit

    patch.setattr(Slot, "fetch", fetch)


def no_wait_before_the_first_copy(patch: pytest.MonkeyPatch) -> None:
    make = Slot.__init__

    def unmarked(slot: Slot, engine: Any, num_bytes: int) -> None:
        make(slot, engine, num_bytes)
        slot.copied = slot.released = done()

    patch.setattr(Slot, "__init__", unmarked)


def no_wait_before_free(patch: pytest.MonkeyPatch) -> None:
    def free(slot: Slot) -> None:
        slot.engine.free(slot.buffer, after=())
        del slot.buffer

    patch.setattr(Slot, "free", free)


def staging_is_refilled_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamEngine, "_finish", lambda engine, staging: None)


def a_stale_slot(patch: pytest.MonkeyPatch) -> None:
    fetch = Slot.fetch

    def claim(slot: Slot, store: Any, unit: str, edits: Any, observer: Any = None) -> None:
        if unit == "blocks.3":
            slot.unit = unit  # without its bytes
        else:
            fetch(slot, store, unit, edits)

    patch.setattr(Slot, "fetch", claim)


def weights_of_another_slot(patch: pytest.MonkeyPatch) -> None:
    bind = UnitWeights.bind
    last: list[Slot] = []

    def bind_to_the_last(unit: UnitWeights, slot: Slot) -> None:
        last.append(slot)
        bind(unit, last[-2] if unit.name == "blocks.3" else slot)

    patch.setattr(UnitWeights, "bind", bind_to_the_last)


def a_window_one_too_far(patch: pytest.MonkeyPatch) -> None:
    """The slot of the block that is about to run counts as free for the block `window` places on."""
    take = Ring.take

    def prefetch_first(ring: Ring, unit: str) -> Slot:
        slot = take(ring, unit)
        slot.users -= 1
        ring.prefetch()
        slot.users += 1
        return slot

    patch.setattr(Ring, "take", prefetch_first)


def a_window_one_too_wide(patch: pytest.MonkeyPatch) -> None:
    make = Ring.__init__

    def wider(ring: Ring, engine: Any, store: Any, sizes: Sequence[int], *rest: Any) -> None:
        make(ring, engine, store, [*sizes, max(sizes)], *rest)

    patch.setattr(Ring, "__init__", wider)


FAULTS: list[tuple[Patch, str]] = [
    (no_wait_before_use, "nothing makes it wait"),
    (no_wait_before_reuse, "compute may still be using it"),
    (reuse_waits_for_the_last_copy_only, "compute may still be using it"),
    (no_wait_before_the_first_copy, "compute may still be using it"),
    (no_wait_before_free, "copies may still be using it"),
    (staging_is_refilled_at_once, "copies may still be using it"),
    (a_stale_slot, "which holds"),
    (weights_of_another_slot, "which holds"),
    (a_window_one_too_far, "which holds"),
    (a_window_one_too_wide, "the bound is"),
]


def run_three_steps(engine: str, window: int) -> None:
    with simulated(window, engine) as (model, offloaded, _):
        for _ in range(3):
            model(example())
        offloaded.end()


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_fault_is_caught(fault: Patch, message: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = "staged" if fault is staging_is_refilled_at_once else "page-locked"
    run_three_steps(engine, window)  # right as it is
    fault(monkeypatch)
    with pytest.raises(Unordered, match=message):
        run_three_steps(engine, window)


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("engine", ["staged", "staged late"])
@pytest.mark.parametrize("fault", [no_wait_before_reuse, no_wait_before_use, a_window_one_too_far])
def test_a_fault_is_caught_behind_staging_too(
    fault: Patch, engine: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_three_steps(engine, window)
    fault(monkeypatch)
    with pytest.raises(Unordered):
        run_three_steps(engine, window)
