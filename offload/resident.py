"""What stays on the device of a component whose weights come and go."""

from collections.abc import Iterable, Mapping

from offload.binding import UnitWeights
from offload.edits import UnitEdits
from offload.engines.engine import CopyEngine
from offload.ring import Slot
from offload.stores.store import Store
from weights.observer import Observer


class Resident:
    """Units that never leave the device between calls: resident blocks, and the buffers outside the blocks. Each has a
    slot of its own. In normal mode."""

    def __init__(self, engine: CopyEngine, units: Mapping[str, UnitWeights]) -> None:
        self._units = units
        self.slots = {name: Slot(engine, unit.num_bytes) for name, unit in units.items()}

    @property
    def names(self) -> list[str]:
        return list(self._units)

    @property
    def num_bytes(self) -> int:
        """Of the slots: nothing once they are freed."""
        return sum(slot.buffer.numel() for slot in self.slots.values())

    def fetch(self, store: Store, edits: UnitEdits, observer: Observer | None = None) -> list[str]:
        """Bring those that are away, and name them: all, or none of them holds a unit. Raises StoreError."""
        away = {name: slot for name, slot in self.slots.items() if slot.unit is None}
        try:
            for name, slot in away.items():
                slot.release()
                slot.fetch(store, name, edits, observer)
            for slot in away.values():
                slot.wait(observer)
        except BaseException:  # also Ctrl-C: a half-filled slot would pass for its unit
            for slot in away.values():
                slot.unit = None
            raise
        return list(away)

    def bind(self, names: Iterable[str]) -> None:
        for name in names:
            self._units[name].bind(self.slots[name])

    def refresh(self, store: Store, edits: UnitEdits, observer: Observer | None) -> None:
        """Bring those back that `send_away` took. Raises StoreError."""
        self.bind(self.fetch(store, edits, observer))

    def send_away(self, names: Iterable[str]) -> None:
        """Until `refresh`: their weights have changed."""
        for name in names:
            self._units[name].unbind()
            self.slots[name].unit = None

    def release(self) -> None:
        """What has been queued so far may still read them."""
        for slot in self.slots.values():
            slot.release()

    def free(self) -> None:
        while self.slots:
            self.slots.popitem()[1].free()
