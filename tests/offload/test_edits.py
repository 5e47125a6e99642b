"""Edited weights are base + edits wherever they rest, made on the device at each fetch; the store keeps the base."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import save_file

from offload import DiskStore, HostStore, Store, StoreError, WeightAway, offload, plan_units
from offload.edits import Edit
from offload.ring import Slot
from tests.offload.engines.simulated_engine import SimulatedEngine, Simulation, Unordered
from tests.offload.memory_store import MemoryStore
from tests.offload.offload_models import Stack, example
from tests.offload.stores.store_files import bits, contents
from tests.offload.test_schedule_faults import ENGINES, units_by_weight
from weights.checkpoint import Checkpoint
from weights.observer import Observer

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Add:
    """Adds to a weight; equal for equal amounts."""

    amount: float

    def __call__(self, weight: torch.Tensor) -> None:
        weight += self.amount


def files(directory: Path) -> HostStore:
    return HostStore.from_files(lambda: DiskStore(Checkpoint(directory), plan_units(Stack())))


def library(directory: Path) -> HostStore:
    return HostStore.from_tensors(plan_units(Stack()), lambda: Stack().state_dict())


def disk(directory: Path) -> DiskStore:
    return DiskStore(Checkpoint(directory), plan_units(Stack()))


STORES: dict[str, Callable[[Path], Store]] = {"files": files, "library": library, "disk": disk}


def saved(directory: Path) -> Path:
    """The file of a model that `Stack()` makes again."""
    file = directory / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in Stack().state_dict().items()}, file)
    return file


def edited(edits: dict[str, Edit]) -> Stack:
    """What the offloaded model should be: edits by name, on a plain one."""
    plain = Stack()
    state = plain.state_dict()
    for name, edit in edits.items():
        edit(state[name])
    return plain


def chosen(amount: float) -> dict[str, Edit]:
    names = [name for name in Stack().state_dict() if name.endswith(("weight", "mean"))]
    return dict.fromkeys(names, Add(amount)) if amount else {}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("resident", [0, 2, 5])
@pytest.mark.parametrize("kind", STORES)
def test_every_edit_starts_from_the_base(tmp_path: Path, kind: str, resident: int, inference: bool) -> None:
    file = saved(tmp_path)
    before, ours = (file.stat().st_mtime_ns, file.read_bytes()), Stack()
    store = STORES[kind](tmp_path)
    base = {name: bits(tensor) for name, tensor in contents(store).items()}
    offloaded = offload(ours, store, device=CPU, resident_blocks=resident)
    for amount in (0.5, -0.25, 0.0, 0.5, 0.0):
        with torch.inference_mode(inference):
            offloaded.edit(chosen(amount))
        plain = edited(chosen(amount))
        for _ in range(2):  # what comes up again is edited again, from its base
            with torch.inference_mode():
                assert torch.equal(ours(example()), plain(example()))
        offloaded.end()
        state = ours.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())
        assert not any(tensor.is_inference() for tensor in (*ours.parameters(), *ours.buffers()))
        assert offloaded.bytes_on_device == offloaded.bytes_at_rest
    assert {name: bits(tensor) for name, tensor in contents(store).items()} == base
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before


def test_the_plain_module_that_is_given_back_is_edited(tmp_path: Path) -> None:
    ours = Stack()
    offloaded = offload(ours, MemoryStore(ours), device=CPU, resident_blocks=2)
    offloaded.edit(chosen(0.5))
    offloaded.remove()
    wanted = edited(chosen(0.5)).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in ours.state_dict().items())


@torch.no_grad()
def test_a_name_that_is_nowhere_changes_nothing() -> None:
    ours = Stack()
    offloaded = offload(ours, MemoryStore(ours), device=CPU, resident_blocks=2)
    offloaded.edit(chosen(1.0))
    with pytest.raises(KeyError, match="nowhere"):
        offloaded.edit({**chosen(2.0), "nowhere": Add(2.0)})
    assert torch.equal(ours(example()), edited(chosen(1.0))(example()))


@torch.no_grad()
def test_an_edit_is_made_once_a_fetch_and_resident_blocks_that_stay_the_same_are_left_alone() -> None:
    made: list[str] = []

    @dataclass(frozen=True)
    class Note:
        name: str

        def __call__(self, weight: torch.Tensor) -> None:
            made.append(self.name)

    ours = Stack()
    store = MemoryStore(ours, views=False)
    offloaded = offload(ours, store, device=CPU, resident_blocks=1)
    resident = next(name for name in offloaded._resident.slots if name.startswith("blocks"))
    streamed = offloaded._streamed[0].name
    edits: dict[str, Edit] = {f"{unit}.up.weight": Note(unit) for unit in (resident, streamed)}
    offloaded.edit(edits)
    assert made == [resident]
    reads = len(store.reads)
    offloaded.edit(dict(edits))
    assert made == [resident] and len(store.reads) == reads
    for num_steps in (1, 2, 3):
        ours(example(), [0, 1, 2, 3, 4])
        assert made.count(streamed) == num_steps and made.count(resident) == 1


@torch.no_grad()
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("resident", [0, 5])
def test_an_edit_that_fails_half_way_is_never_taken_for_the_weights(error: type[BaseException], resident: int) -> None:
    ours, broken = Stack(), True

    def fail(weight: torch.Tensor) -> None:
        weight.zero_()
        if broken:
            raise error("out of luck")

    offloaded = offload(ours, MemoryStore(ours), device=CPU, resident_blocks=resident)
    offloaded.edit(chosen(1.0))
    with pytest.raises(error, match="out of luck"):
        offloaded.edit({**chosen(2.0), "blocks.1.up.weight": fail})
        ours(example())
    with pytest.raises(error, match="out of luck"):
        ours(example())
    broken = False
    wanted = edited({**chosen(2.0), "blocks.1.up.weight": torch.Tensor.zero_})
    assert torch.equal(ours(example()), wanted(example()))
    offloaded.edit(chosen(1.0))
    assert torch.equal(ours(example()), edited(chosen(1.0))(example()))


@torch.no_grad()
def test_a_resident_block_that_cannot_be_had_again_is_away_until_it_can(tmp_path: Path) -> None:
    ours, file = Stack(), saved(tmp_path)
    offloaded = offload(ours, disk(tmp_path), device=CPU, resident_blocks=2)
    (tmp_path / "away").mkdir()
    os.rename(file, tmp_path / "away" / file.name)
    with pytest.raises(StoreError, match="is gone"):
        offloaded.edit({"blocks.0.up.weight": Add(1.0)})
    with pytest.raises(WeightAway, match=r"blocks\.0\.up\.weight"):
        ours.blocks[0].up.weight.sum()
    with pytest.raises(StoreError, match="is gone"):
        offloaded.edit({})
    with pytest.raises(StoreError, match="is gone"):
        ours(example())
    os.rename(tmp_path / "away" / file.name, file)
    assert torch.equal(ours(example()), Stack()(example()))


# On a device that is simulated to the last wait


def run_edited(engine: str, window: int | Literal["all"]) -> None:
    """Steps and switches."""
    ours, simulation = Stack(), Simulation()
    store = MemoryStore(ours, views=engine == "page-locked")
    offloaded = offload(
        ours, store, device=CPU, window=window, resident_blocks=1, engine=SimulatedEngine(simulation, **ENGINES[engine])
    )

    def on_the_device(weight: torch.Tensor) -> None:
        buffer = simulation.buffer_of(weight)
        assert buffer is not None and buffer.name.startswith("slot"), "computed elsewhere"
        weight += 0.5

    edits: dict[str, Edit] = {name: on_the_device for name in chosen(0.5)}
    with torch.no_grad(), simulation.computing(units_by_weight(store)):
        for active, amount in ((edits, 0.5), ({}, 0.0), (edits, 0.5)):
            offloaded.edit(active)
            for _ in range(3):
                assert torch.equal(ours(example()), edited(chosen(amount))(example()))
        offloaded.end()


@pytest.mark.parametrize("window", [1, 2, "all"])
@pytest.mark.parametrize("engine", ENGINES)
def test_edits_are_in_order_with_copies(engine: str, window: int | Literal["all"]) -> None:
    run_edited(engine, window)


class Unwaiting:
    """An engine whose copies are not waited for."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def wait(self, mark: Any) -> None:
        pass

    def mark(self) -> Any:
        return self.engine.mark()


def test_an_edit_before_the_copy_is_there_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Slot.wait

    def edit_first(slot: Slot, observer: Observer | None = None) -> None:
        engine, slot.engine = slot.engine, Unwaiting(slot.engine)  # type: ignore[assignment]
        wait(slot, observer)
        slot.engine = engine
        engine.wait(slot.copied)

    monkeypatch.setattr(Slot, "wait", edit_first)
    with pytest.raises(Unordered, match="copies may still be using it"):
        run_edited("page-locked", 1)


def test_a_copy_comes_after_what_an_interrupted_edit_has_queued() -> None:
    def interrupted(weight: torch.Tensor) -> None:
        weight += 1
        raise KeyboardInterrupt

    store, simulation = MemoryStore(Stack()), Simulation()
    slot = Slot(SimulatedEngine(simulation), store.packings["blocks.1"].num_bytes)
    with simulation.computing({}):
        slot.fetch(store, "blocks.1", {"blocks.1": {"blocks.1.up.weight": interrupted}})
        with pytest.raises(KeyboardInterrupt):
            slot.wait()
        assert slot.unit is None
        slot.fetch(store, "blocks.2", {})  # raises Unordered where it would overtake
        slot.wait()
        slot.free()
