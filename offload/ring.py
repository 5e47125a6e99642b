"""The buffers that a component's blocks take turns in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from offload.edits import Edit, UnitEdits
from offload.engines.engine import CopyEngine, Mark
from offload.order import Order
from offload.stores.packing import PackedTensor, Packing, view, views
from offload.stores.store import Store
from weights.observer import Observer


class Slot:
    """A buffer on the device, which unit it holds, and the marks that say when it may be read, filled again or freed.

    `unit` is the one that the last copy brings; `users` counts the calls that are reading it (a block may call itself).
    A unit is edited when it is waited for, once a copy; see [Note: where edits are made] in offload/edits.py.
    """

    def __init__(self, engine: CopyEngine, num_bytes: int) -> None:
        self.engine = engine
        self.buffer = engine.empty(num_bytes)
        self.unit: str | None = None
        self.users = 0
        self._weights: dict[str, dict[str, torch.Tensor]] = {}
        self._to_edit: list[tuple[PackedTensor, Edit]] = []
        # Whoever had this memory before may still be computing; see [Note: order] in engines/engine.py.
        self.copied: Mark = engine.mark()
        self.released: Mark = self.copied

    def fetch(self, store: Store, unit: str, edits: UnitEdits, observer: Observer | None = None) -> None:
        assert self.users == 0
        self.unit = None
        packed = store.packings[unit].tensors
        self._to_edit = [(packed[name], edit) for name, edit in edits.get(unit, {}).items()]
        self.copied = self.engine.copy(store, unit, self.buffer, (self.released, self.copied), observer)
        self.unit = unit

    def wait(self, observer: Observer | None = None) -> None:
        """Raises StoreError, and what an edit raises; then, as after Ctrl-C, the slot holds nothing that could be taken
        for a unit."""
        try:
            began = None if observer is None else observer.now()
            self.engine.wait(self.copied)
            if observer is not None and began is not None:
                observer.tell("wait", self.unit or "", began, observer.now())
            while self._to_edit:
                weight, edit = self._to_edit.pop()
                edit(view(weight, self.buffer))
        except BaseException:  # also Ctrl-C: what is half there would pass for the unit
            self.unit = None
            self.release()  # edits that are queued may still write
            raise

    def weights(self, unit: str, packing: Packing) -> Mapping[str, torch.Tensor]:
        """The unit's tensors as views of the buffer, made once: a block is bound at every step."""
        if unit not in self._weights:
            self._weights[unit] = views(packing, self.buffer)
        return self._weights[unit]

    def release(self) -> None:
        self.released = self.engine.mark()

    def free(self) -> None:
        self.engine.free(self.buffer, after=(self.released, self.copied))
        self.unit = None
        self._weights.clear()  # they hold the buffer's memory
        del self.buffer


@dataclass
class Traffic:
    """What blocks have crossed to the device: their bytes, the fetches, and how many of those a call had to ask for.
    The observer, where there is one, is told of each as it happens."""

    num_bytes: int = 0
    fetches: int = 0
    demand_fetches: int = 0
    observer: Observer | None = None


class Ring:
    """A sliding window over the blocks: while one runs, those expected next are held or on their way.

    The slot that a block leaves takes the one expected soonest that is not there: in a steady round the block `window`
    places on, so that each crosses once a round. Nothing of this decides what a call gets: a block that is not held
    when it is called is fetched then.
    """

    def __init__(
        self,
        engine: CopyEngine,
        store: Store,
        sizes: Sequence[int],
        order: Order,
        traffic: Traffic,
        edits: UnitEdits,
    ) -> None:
        self._engine = engine
        self._store = store
        self._order = order
        self._traffic = traffic
        self._edits = edits
        self._window = len(sizes)
        self._slots = [Slot(engine, num_bytes) for num_bytes in sizes]

    @property
    def num_bytes(self) -> int:
        return sum(slot.buffer.numel() for slot in self._slots)

    def take(self, unit: str) -> Slot:
        """The slot that holds the unit, ready to be read; it stays so until it is released. Raises StoreError."""
        self._order.ran(unit)
        slot = next((slot for slot in self._slots if slot.unit == unit), None)
        if slot is None:
            slot = self._least_wanted(self._store.packings[unit].num_bytes)
            self._fetch(slot, unit)
            self._traffic.demand_fetches += 1
        slot.users += 1
        try:
            self.prefetch()
            slot.wait(self._traffic.observer)
        except BaseException:  # also Ctrl-C: a slot in use by nobody would never be filled again
            slot.users -= 1
            raise
        return slot

    def release(self, slot: Slot) -> None:
        slot.users -= 1
        slot.release()
        if slot.users == 0:
            if slot in self._slots[self._window :]:  # one too many, see _least_wanted
                self._slots.remove(slot)
                slot.free()
            self.prefetch()

    def prefetch(self) -> None:
        """Fetch what is expected next into the slots that nobody reads and that hold nothing expected as soon."""
        idle = [slot for slot in self._slots if slot.users == 0]
        used = {slot.unit for slot in self._slots if slot.users}
        wanted = [unit for unit in self._order.upcoming() if unit not in used][: len(idle)]
        vacant = [slot for slot in idle if slot.unit not in wanted]
        held = {slot.unit for slot in idle}
        for unit in wanted:
            if unit not in held and (slot := _tightest(vacant, self._store.packings[unit].num_bytes)) is not None:
                vacant.remove(slot)
                self._fetch(slot, unit)

    @property
    def has_asked_for_all(self) -> bool:
        """Whether all that is expected to run before the stage ends is held or on its way."""
        return {slot.unit for slot in self._slots}.issuperset(self._order.upcoming())

    def close(self) -> None:
        """Free the slots, after what is under way in them."""
        while self._slots:
            self._slots.pop().free()

    def _fetch(self, slot: Slot, unit: str) -> None:
        slot.fetch(self._store, unit, self._edits, self._traffic.observer)
        self._traffic.fetches += 1
        self._traffic.num_bytes += self._store.packings[unit].num_bytes

    def _least_wanted(self, num_bytes: int) -> Slot:
        """The idle slot whose unit is expected last, or not at all; one more where all are in use, as a block that
        calls another may need."""
        upcoming = {unit: place for place, unit in enumerate(self._order.upcoming())}
        idle = [slot for slot in self._slots if slot.users == 0 and slot.buffer.numel() >= num_bytes]
        if not idle:
            self._slots.append(Slot(self._engine, num_bytes))
            return self._slots[-1]
        return max(idle, key=lambda slot: (upcoming.get(slot.unit or "", len(upcoming)), -slot.buffer.numel()))


def _tightest(slots: Sequence[Slot], num_bytes: int) -> Slot | None:
    """The smallest that is large enough: where every block has a slot of its own size, none takes another's place."""
    return min((s for s in slots if s.buffer.numel() >= num_bytes), key=lambda s: s.buffer.numel(), default=None)


def slot_sizes(sizes: Sequence[int], window: int) -> list[int]:
    """`window` slots that each fit any block, or one slot a block, of its size, where the window holds them all."""
    return list(sizes) if window >= len(sizes) else [max(sizes)] * window
