"""A component whose weights come and go: its stage, and the calls that move them."""

import functools
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from offload.binding import UnitWeights, guard_weights
from offload.edits import Edit, UnitEdits, by_unit
from offload.engines import engine_for
from offload.engines.engine import CopyEngine
from offload.order import Order
from offload.resident import Resident
from offload.ring import Ring, Slot, Traffic, slot_sizes
from offload.stores.store import Store
from offload.units import OUTSIDE
from weights.memory import hold
from weights.modes import normal_mode, refuse_inference_mode
from weights.overrides import Overrides


def is_offloaded(module: nn.Module) -> bool:
    return offloader_of(module) is not None


def offloader_of(module: nn.Module) -> "Offloaded | None":
    """What moves this module's weights, read off the module."""
    return vars(module).get("_offloaded")


class Offloaded:
    """A component whose weights come and go; made by `offload`, and found again by `offloader_of`.

    A stage is what lies between `begin()` and `end()`. Outside of it only resident blocks and the buffers outside the
    blocks are on the device: the ring goes too, so that the next component has its memory. Use it from one thread at a
    time, on one stream a stage.
    """

    def __init__(
        self,
        module: nn.Module,
        store: Store,
        device: torch.device,
        units: Mapping[str, UnitWeights],
        resident: set[str],
        window: int | Literal["all"],
        engine: CopyEngine | None,
    ) -> None:
        self.module = module
        self.store = store
        self.device = device
        self.traffic = Traffic()
        self._engine = engine_for(device) if engine is None else engine
        self._owns_engine = engine is None
        self._units = units
        streamed = [name for name in units if name not in resident and name != OUTSIDE]
        self._streamed = [units[name] for name in streamed]
        sizes = [unit.num_bytes for unit in self._streamed]
        self._slot_sizes = slot_sizes(sizes, len(sizes) if window == "all" else window)
        self._order = Order(streamed)
        self._resident = Resident(self._engine, {name: units[name] for name in resident})
        self._outside: Slot | None = None
        self._ring: Ring | None = None
        self._kept: tuple[UnitWeights, Slot] | None = None
        self._calls = 0  # of entry points, in progress
        self._has_failed = False  # one of them, so that the ring goes with the last
        self._then: Callable[[], None] | None = None  # for when this stage has asked for all of its weights
        self._edits: UnitEdits = {}
        self._overrides = Overrides()
        self._handles: list[RemovableHandle] = []
        self.blocks: Mapping[str, nn.Module] = {}  # all of them: each comes for its own forward, or stays
        self._blocks: dict[str, nn.Module] = {}

    @property
    def is_up(self) -> bool:
        """Whether the component's stage runs: all that is outside its blocks is on the device."""
        return self._outside is not None

    @property
    def num_bytes(self) -> int:
        """The true weights, as they are packed."""
        return sum(unit.num_bytes for unit in self._units.values())

    @property
    def bytes_at_rest(self) -> int:
        """On the device between stages: resident blocks, buffers outside the blocks, non-persistent buffers."""
        kept = sum(buffer.nbytes for buffer in kept_buffers(self.module))
        return kept + self._resident.num_bytes

    @property
    def bytes_bound(self) -> int:
        """On the device at most: the window (a slot fits any block), what is outside the blocks, what is there at rest.

        A block that calls another one inside its forward takes one more slot for each such call beyond the window.
        """
        return self.bytes_at_rest + self._units[OUTSIDE].num_bytes + sum(self._slot_sizes)

    @property
    def bytes_of_ring(self) -> int:
        """What `prefetch_head()` takes on the device."""
        return sum(self._slot_sizes)

    @property
    def bytes_on_device(self) -> int:
        """Now."""
        outside = self._outside.buffer.numel() if self._outside else 0
        return self.bytes_at_rest + outside + (self._ring.num_bytes if self._ring else 0)

    @property
    def moving_blocks(self) -> dict[str, nn.Module]:
        """Those whose weights cross anew at each pass; none where the window holds all that are streamed."""
        return self._blocks if len(self._slot_sizes) < len(self._streamed) else {}

    def keep(self, block: str) -> None:
        """Bring a block up for several calls in a row, until `let_go`: its weights cross once, and to the order of what
        comes next the calls count as one. Idempotent. Raises what the block's own call would: StoreError, and what an
        edit raises.
        """
        unit = self._units[block]
        if self._kept is None:  # a call that failed may have taken it down
            self._kept = (unit, self._take(unit))
        assert self._kept[0] is unit, "let go of one block before the next"

    def let_go(self) -> None:
        """Of the block that is kept. Idempotent."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            self._release(*kept)

    def prefetch_head(self) -> None:
        """Make the ring and start to fetch the blocks that will run first; may come before `begin()`, where the memory
        allows, while another component finishes."""
        if self._streamed and self._ring is None:
            with normal_mode():
                self._ring = self._make_ring()
                self._ring.prefetch()

    def when_all_is_asked_for(self, then: Callable[[], None]) -> None:
        """Call it, once, when the stage that runs or begins next has asked for all the weights that it is expected to
        need, or when a call ends: what else the engine fetches is not in their way then. Not after the stage's end.
        """
        self._then = then
        self._tell_if_all_is_asked_for()

    def begin(self) -> None:
        """Bring up what is outside the blocks, and start on the first blocks. Idempotent; raises StoreError.

        A call of an entry point begins by itself; it takes an `end()` to bring the component down.
        """
        if self._outside is not None:
            return
        unit, observer = self._units[OUTSIDE], self.traffic.observer
        with normal_mode():
            self._resident.refresh(self.store, self._edits, observer)
            slot = Slot(self._engine, unit.num_bytes)
            try:
                if unit.num_bytes:
                    slot.fetch(self.store, unit.name, self._edits, observer)
                self.prefetch_head()
                slot.wait(observer)
                unit.bind(slot)
                self._outside = slot
                self._tell_if_all_is_asked_for()
            except BaseException:  # also Ctrl-C: half a stage would hold memory that no end() knows of
                self._close_ring()
                unit.unbind()
                slot.free()
                raise

    def end(self) -> None:
        """Put everything down but the resident blocks, after the work that still reads it. Idempotent."""
        self._then = None
        with normal_mode():
            self._close_ring()
            self._order.stage_ended()
            if self._outside is not None:
                slot, self._outside = self._outside, None
                self._units[OUTSIDE].unbind()
                slot.release()
                slot.free()

    def edit(self, edits: Mapping[str, Edit]) -> None:
        """Make the weights those of the store with these edits, by the names that `plan_units` lists them under,
        whatever was edited before; {} undoes all. They are made at each fetch; see [Note: where edits are made].

        Between calls only: it ends the stage. Any mode will do. No collective: the store stays as it is.

        Raises KeyError for a name that is in no unit, with the weights as they were; and StoreError, or what an edit
        raises, where a resident block cannot be had anew: it is away then, until a stage begins that can fetch it.
        """
        wanted = by_unit(self.store.packings, edits)
        changed = [name for name in self._resident.names if wanted.get(name) != self._edits.get(name)]
        self.end()
        self._edits = wanted
        with normal_mode():
            self._resident.send_away(changed)
            self._resident.refresh(self.store, wanted, self.traffic.observer)

    def remove(self, device: torch.device | None = None) -> nn.Module:
        """Give the plain module back: true weights on `device` (default: ours), each in memory of its own.

        Raises StoreError, and RuntimeError where something else was laid over a method since, with the offload as it
        was. Idempotent.
        """
        refuse_inference_mode("take an offload off")
        if offloader_of(self.module) is not self:
            return self.module
        device = device or self.device
        self.end()
        with normal_mode():
            weights = {unit: self._read(unit, device) for unit in self._units.values()}
            self._overrides.undo()
            for handle in self._handles:
                handle.remove()
            for unit, tensors in weights.items():
                unit.detach(tensors)
            for buffer in kept_buffers(self.module):
                hold(buffer, buffer.to(device))
            self._resident.release()
            self._free_resident()
        return self.module

    def attach(self, blocks: Mapping[str, nn.Module], entry_points: Iterable[str]) -> None:
        """Take over the module; `offload` does it, once. Raises StoreError with the module as it was."""
        with normal_mode():
            try:
                self._resident.fetch(self.store, self._edits)
            except BaseException:  # also Ctrl-C: the module is not ours yet, so nobody else would free them
                self._free_resident()
                raise
            for buffer in kept_buffers(self.module):
                hold(buffer, buffer.to(self.device))
            for unit in self._units.values():
                unit.attach(self.device)
            self._resident.bind(self._resident.names)
        self.blocks = blocks
        self._blocks = {unit.name: blocks[unit.name] for unit in self._streamed}
        for unit in self._streamed:
            self._overrides.set(blocks[unit.name], "forward", self._around_block(unit, blocks[unit.name].forward))
        for entry in entry_points:
            if callable(getattr(type(self.module), entry, None)):
                self._overrides.set(self.module, entry, self._around_entry(getattr(self.module, entry)))
        self._handles = guard_weights(self.module, list(self._units.values()), self._read, self._overrides)
        self._overrides.set(self.module, "_offloaded", self)

    def _read(self, unit: UnitWeights, device: torch.device) -> dict[str, torch.Tensor]:
        return unit.read(self.store, self._edits.get(unit.name, {}), device)

    def _free_resident(self) -> None:
        self._resident.free()
        if self._owns_engine:
            self._engine.close()

    def _around_entry(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.begin()
            self._calls += 1
            try:
                with torch.no_grad():  # autograd would keep hold of buffers that other weights come into
                    made = method(*args, **kwargs)
                self._tell()  # where this stage takes more blocks than the last one, nobody knew when all was asked for
                return made
            except BaseException:  # also Ctrl-C, which may come between any two steps of the ring: make a new one
                self._has_failed = True
                raise
            finally:
                self._calls -= 1
                if self._has_failed and not self._calls:  # calls that are paused inside still read what is up
                    self._has_failed = False
                    with normal_mode():
                        self._close_ring()

        return call

    def _around_block(self, unit: UnitWeights, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Weights move in normal mode; the block computes in its caller's. Not hooks: torch skips those on Ctrl-C."""

        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            slot = self._take(unit)
            try:
                return forward(*args, **kwargs)
            finally:
                self._release(unit, slot)

        return call

    def _take(self, unit: UnitWeights) -> Slot:
        if self._kept is not None and self._kept[0] is unit:
            slot = self._kept[1]
            slot.users += 1
            return slot
        with normal_mode():
            self.prefetch_head()
            assert self._ring is not None
            slot = self._ring.take(unit.name)
            unit.bind(slot)
            return slot

    def _release(self, unit: UnitWeights, slot: Slot) -> None:
        began, observer = perf_counter(), self.traffic.observer
        with normal_mode():
            if slot.users == 1:
                unit.unbind()
            if self._ring is not None:
                self._ring.release(slot)
        self._tell_if_all_is_asked_for()
        if observer is not None:
            observer.tell("release", unit.name, began, perf_counter())

    def _tell_if_all_is_asked_for(self) -> None:
        if self._then is not None and self.is_up and (self._ring is None or self._ring.has_asked_for_all):
            self._tell()

    def _tell(self) -> None:
        then, self._then = self._then, None
        if then is not None:
            then()

    def _make_ring(self) -> Ring:
        sizes = self._slot_sizes
        try:
            return Ring(self._engine, self.store, sizes, self._order, self.traffic, self._edits)
        except RuntimeError as error:  # the allocator's
            kind = type(self.module).__name__
            error.add_note(
                f"{kind} needs {len(sizes)} buffers for its blocks on {self.device}, {sum(sizes)} bytes in all (the "
                f"largest block has {max(sizes)}): use a smaller window, or fewer resident blocks"
            )
            raise

    def _close_ring(self) -> None:
        """Fetches that nobody waited for are dropped with their errors: who needs those blocks will see them again."""
        ring, self._ring = self._ring, None
        self._kept = None
        for unit in self._streamed:
            unit.unbind()
        if ring is not None:
            ring.close()


def kept_buffers(module: nn.Module) -> list[torch.Tensor]:
    """Non-persistent buffers are in no store; they stay on the device."""
    buffers = {
        id(buffer): buffer
        for inner in module.modules()
        for name, buffer in inner._buffers.items()
        if buffer is not None and name in inner._non_persistent_buffers_set
    }
    return list(buffers.values())
