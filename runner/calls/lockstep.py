"""Ranks that make sharded calls together agree before each one, so that one rank's error does not hang the others.

A sharded component gathers its weights from the ranks of its shard group: a rank that raised, or that went another way
through the pipeline, would leave the others waiting in a collective. So the ranks of the group meet before each such
call, on the host and beside the weights' traffic: they exchange one number that stands for the place in the pipeline.
Where the numbers differ, all of them leave their requests at once, and say why. Ranks of other groups hold weights of
their own (HSDP), so that they neither wait nor leave.

The ranks of a team, which make one request, meet in the same way. Another number goes with the place, which stands for
all that has to be the same on them (runner/calls/witness.py).
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from runner.calls.turns import VOTE, this_turn
from runner.calls.witness import TeamDiffers, Witness, as_number, difference
from weights.agreement import Group, gather, gather_int, rank_in, ranks_of, size_of

_LEFT = "left: "
_DIFFERS = "differs: "
END = "the end"
T = TypeVar("T")
Stand = tuple[str, Mapping[str, int]]  # a place, and what the ranks of a team compare there


class PeerLeft(RuntimeError):
    """Another rank's request failed, so this rank's could not go on: it did nothing wrong, and may be made again."""


class OutOfStep(PeerLeft):
    """The ranks' requests went different ways through the pipeline, although they are alike in their arguments."""


class TornApart(RuntimeError):
    """A rank failed inside a sharded call. The others are inside too, and cannot be met there: the job has to end."""


class Lockstep:
    """Keeps the ranks of `group` in step: those that share weights, or make one request together; None where each rank
    is alone, so that none waits for another. `witness`: what the ranks of a team, some of these or all, compare."""

    def __init__(self, group: Group, witness: Witness | None = None) -> None:
        self.group = group
        self.size = size_of(group)
        self._witness = witness
        self._inside: ContextVar[str | None] = ContextVar("_inside", default=None)

    @property
    def inside(self) -> str | None:
        """The sharded call that the request on this rank is in, or failed in."""
        return self._inside.get()

    @inside.setter
    def inside(self, place: str | None) -> None:
        self._inside.set(place)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around one request on every rank. Collective over the group, also when the request raises."""
        try:
            with self.turn():
                yield
        except (PeerLeft, TeamDiffers, TornApart):
            raise  # all ranks met already, and all raise; or they cannot be met
        except Exception as error:  # of any kind: the others wait at their next call, and have to hear of it
            self.compare([(left(error), self.stands())])
            raise
        self.meet(END)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around a request that takes turns with others: whoever serves them meets the other ranks."""
        self.inside = None
        try:
            yield
        except (PeerLeft, TeamDiffers):
            raise
        except Exception as error:  # of any kind: where the others are inside too, the job ends
            if self.inside is not None and self.size > 1:
                raise TornApart(f"{type(error).__name__}: {error} (inside the sharded {self.inside})") from error
            raise

    def meet(self, place: str) -> None:
        """Wait for all ranks; raises PeerLeft on this one where another's request failed, OutOfStep where it went
        elsewhere, TeamDiffers where the ranks that make one request came to differ. Collective. In a turn, whoever
        serves the turns meets the other ranks for it."""
        if self.size > 1 and this_turn() is not None:
            self.any(False, place)
            return
        if gone := self.leaves(self._together(place)):
            raise gone

    def any(self, flag: bool, place: str) -> bool:
        """Whether any rank says so. Collective; raises what `meet` raises."""
        if self.size > 1 and (turn := this_turn()) is not None:
            turn.place, turn.where, turn.flag = turn.place._replace(block=VOTE), place, flag
            turn.stands = self.stands()
            turn.wait()
            assert turn.flag is not None
            return turn.flag
        said = {f"{place}: {answer}": answer for answer in (True, False)}
        places = self._together(f"{place}: {flag}")
        if set(places.values()) - set(said):
            raise _out_of_step(places)
        return any(said[place] for place in places.values())

    def stands(self) -> Mapping[str, int]:
        """What the ranks of this one's team compare, of the request under way here; empty where it is alone."""
        return self._witness.stands() if self._witness is not None else {}

    def compare(self, turns: Sequence[Stand]) -> list[dict[int, str]]:
        """Where all turns of a group stand: for each the place on every rank, as many on each. Collective. Where all
        are the same, that costs one small collective."""
        ranks = ranks_of(self.group)
        number = _packed([place for place, _ in turns], [stands for _, stands in turns])
        numbers = gather_int(number, self.group)
        if len({one >> 32 for one in numbers}) == 1 and all(len(set(team)) == 1 for team in self._teams(numbers)):
            return [dict.fromkeys(ranks, place) for place, _ in turns]
        told = gather(list(turns), self.group)
        # A rank whose request failed stands for itself, where on another one several of its calls are turns.
        rows = [[other[min(index, len(other) - 1)] for other in told] for index in range(len(turns))]
        return [dict(zip(ranks, self._who_differs(row), strict=True)) for row in rows]

    def leaves(self, places: Mapping[int, str]) -> PeerLeft | TeamDiffers | None:
        """Why this rank leaves the request, by the place of each rank; None where all are the same."""
        own = places[ranks_of(self.group)[rank_in(self.group)]]
        if own.startswith(_DIFFERS):
            return TeamDiffers(own.removeprefix(_DIFFERS))
        return (_who_left(places) or _out_of_step(places)) if len(set(places.values())) > 1 else None

    def _together(self, place: str) -> dict[int, str]:
        """The place of each rank, by its number in the world."""
        (places,) = self.compare([(place, self.stands())])
        if any(other.startswith((_LEFT, _DIFFERS)) for other in places.values()):
            raise self.leaves(places) or _who_left(places) or _out_of_step(places)
        return places

    def _teams(self, ranks: Sequence[T]) -> list[Sequence[T]]:
        """What belongs to each rank, team by team."""
        size = self._witness.size if self._witness is not None else 1
        return [ranks[first : first + size] for first in range(0, self.size, size)]

    def _who_differs(self, row: Sequence[Stand]) -> list[str]:
        """The places of all ranks, but for those of a team that is in one place and differs."""
        places: list[str] = []
        for team, ranks in zip(self._teams(row), self._teams(ranks_of(self.group)), strict=True):
            where = [place for place, _ in team]
            apart = difference(ranks, [stands for _, stands in team]) if len(set(where)) == 1 else None
            places += where if apart is None else [f"{_DIFFERS}{apart}, first seen at {where[0]}"] * len(team)
        return places


def left(error: BaseException) -> str:
    """The place of a request that failed."""
    return f"{_LEFT}{type(error).__name__}: {error}"


def _who_left(places: Mapping[int, str]) -> PeerLeft | None:
    """What the other ranks raise, by the place of each rank's request."""
    gone = [f"rank {rank} {place}" for rank, place in places.items() if place.startswith((_LEFT, _DIFFERS))]
    return PeerLeft("; ".join(gone)) if gone else None


def _packed(places: Sequence[str], stands: Sequence[Mapping[str, int]]) -> int:
    """Where a rank is and how it stands there, in 63 bits."""
    return (zlib.crc32("\n".join(places).encode()) >> 1) << 32 | as_number(stands)


def _out_of_step(places: Mapping[int, str]) -> OutOfStep:
    return OutOfStep("; ".join(f"rank {rank} is at {place}" for rank, place in places.items()))
