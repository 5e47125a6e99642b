"""Placements of all components together: of very many, those that no other one beats.

[Note: fronts] Each component has some tens of placements, and their product is beyond counting. But the components meet
only in sums (what rests on the device and on the host, the seconds) and in one maximum (the stage that takes most). So
they are laid together one after the other, and of each lot only those stay that no other one beats in every respect.

[Note: bounds] Most lots are gone before they are compared: what is still to come takes at least so much memory, and so
many seconds. With the seconds of a lot that is complete (a first search with few lots finds a good one), those that
would be much slower are gone too. A stage that takes less than a later one takes in any case is as good as any such.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runner.plan.machine import Machine
from runner.plan.needs import Part

Rows = npt.NDArray[np.float64]  # bytes are below 2**53, and so exact

# Of a lot. Bytes of a rank: at rest; in the stage that takes most so far, beside that; of the stage that is being put
# together, what is up while it runs, and the most that a call takes. Bytes of a node's host. Seconds of a request. How
# many components are placed otherwise than now.
REST, EXTRA, UP, CALL, HOST, SECONDS, CHANGED = range(7)

_AT_ONCE = 256  # rows that are compared with each other
_SLACK = 2.0  # what takes so many times the seconds of the best is not even a runner-up


@dataclass(frozen=True)
class Lots:
    """A row of figures each, and the placements that they are of."""

    rows: Rows
    parts: list[tuple[Part, ...]]

    def chosen(self, places: npt.NDArray[np.intp]) -> "Lots":
        return Lots(self.rows[places], [self.parts[place] for place in places])


@dataclass(frozen=True)
class Limits:
    """What a lot has to keep to. `turns`: bytes of a rank for the others of a group. `best`: (changed, seconds) of a
    lot that is complete; where `by_change`, fewer changes are better than any seconds."""

    machine: Machine
    turns: int
    most: int
    by_change: bool
    best: tuple[float, float] | None = None

    def keep(self, rows: Rows, left: Rows) -> npt.NDArray[np.bool_]:
        """Those that may still fit, and be as good as the best, with what is `left` to come at least."""
        machine = self.machine
        device = device_of(rows) + left[REST] + self.turns + machine.reserved
        host = rows[:, HOST] + left[HOST] + machine.gpus * (machine.staging + machine.process)
        if machine.is_host:
            keep = host + machine.gpus * device <= machine.host_memory
        else:
            keep = (device <= machine.device_memory) & (host <= machine.host_memory)
        if self.best is None:
            return keep
        changed, seconds = self.best
        is_quick = rows[:, SECONDS] + left[SECONDS] <= seconds * _SLACK
        if not self.by_change:
            return keep & is_quick
        return keep & ((rows[:, CHANGED] < changed) | ((rows[:, CHANGED] == changed) & is_quick))


def device_of(rows: Rows) -> Rows:
    return rows[:, REST] + np.maximum(rows[:, EXTRA], rows[:, UP] + rows[:, CALL])


def empty() -> Lots:
    return Lots(np.zeros((1, 7)), [()])


def joined(lots: Lots, ones: Lots, left: Rows, limits: Limits) -> Lots:
    """Each lot with each placement of one component more, in the same stage: what they bring up adds up, their calls
    come one after another. `left`: of those that are still to come."""
    rows = lots.rows[:, None] + ones.rows[None]
    rows[:, :, CALL] = np.maximum(lots.rows[:, None, CALL], ones.rows[None, :, CALL])
    rows = rows.reshape(-1, 7)
    kept = np.flatnonzero(limits.keep(rows, left))
    kept = _spread(rows, kept[unbeaten(rows[kept])], limits.most)
    width = len(ones.parts)
    return Lots(rows[kept], [lots.parts[place // width] + ones.parts[place % width] for place in kept])


def closed(lots: Lots, left: Rows) -> Lots:
    """The stage ends."""
    rows = lots.rows.copy()
    rows[:, EXTRA] = np.maximum(np.maximum(rows[:, EXTRA], rows[:, UP] + rows[:, CALL]), left[EXTRA])
    rows[:, [UP, CALL]] = 0
    return Lots(rows, lots.parts)


def least(stages: Sequence[Sequence[Lots]]) -> list[list[Rows]]:
    """After each component of each stage: what those that follow take at least, whatever their placements."""
    left, found = np.zeros(7), []
    for stage in reversed(stages):
        lowest = [ones.rows.min(axis=0) for ones in stage]
        later, after = left[EXTRA], []
        for low in reversed(lowest):
            after.append(left)
            left = left + low
            left[EXTRA] = later
        found.append(after[::-1])
        left[EXTRA] = max(later, sum(low[UP] for low in lowest) + max(low[CALL] for low in lowest))
    return found[::-1]


def unbeaten(rows: Rows) -> npt.NDArray[np.intp]:
    """Where those rows are that no other one is at most as large as in every column; of equal ones, the first. The
    quickest first."""
    columns = (CALL, UP, EXTRA, REST, CHANGED, HOST)
    order = np.lexsort((*(rows[:, column] for column in columns), device_of(rows), rows[:, SECONDS]))
    kept = order[:0]
    for start in range(0, len(order), _AT_ONCE):
        chunk = order[start : start + _AT_ONCE]
        chunk = chunk[~_beats(rows[kept], rows[chunk]).any(axis=0)]
        chunk = chunk[~np.triu(_beats(rows[chunk], rows[chunk]), 1).any(axis=0)]
        kept = np.concatenate([kept, chunk])
    return kept


def _beats(some: Rows, others: Rows) -> npt.NDArray[np.bool_]:
    found = np.ones((len(some), len(others)), dtype=bool)
    for column in range(7):
        found &= some[:, None, column] <= others[None, :, column]
    return found


def _spread(rows: Rows, kept: npt.NDArray[np.intp], most: int) -> npt.NDArray[np.intp]:
    """So many of them at most, from the one that takes least of the device to the one that takes most, and the
    quickest: more differ by little."""
    if len(kept) <= most:
        return kept
    by_memory = kept[np.argsort(device_of(rows[kept]), kind="stable")]
    every = by_memory[np.arange(most) * (len(kept) - 1) // (most - 1)]
    return np.asarray(list(dict.fromkeys([kept[0], *every])), dtype=np.intp)
