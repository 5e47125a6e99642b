"""Ranks that make sharded calls together agree before each one, so that one rank's error does not hang the others.

A sharded component gathers its weights from the ranks of its shard group: a rank that raised, or that went another way
through the pipeline, would leave the others waiting in a collective. So the ranks of the group meet before each such
call, on the host and beside the weights' traffic: they exchange one number that stands for the place in the pipeline.
Where the numbers differ, all of them leave their requests at once, and say why. Ranks of other groups hold weights of
their own (HSDP), so that they neither wait nor leave.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from runner.calls.turns import VOTE, this_turn
from weights.agreement import Group, gather, gather_int, ranks_of, size_of

_LEFT = "left: "
END = "the end"


class PeerLeft(RuntimeError):
    """Another rank's request failed, so this rank's could not go on: it did nothing wrong, and may be made again."""


class OutOfStep(PeerLeft):
    """The ranks' requests went different ways through the pipeline, although they are alike in their arguments."""


class TornApart(RuntimeError):
    """A rank failed inside a sharded call. The others are inside too, and cannot be met there: the job has to end."""


class Lockstep:
    """Keeps the ranks of `group` in step: those that share weights, or make one request together; None where each rank
    is alone, so that none waits for another."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.size = size_of(group)
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
        except (PeerLeft, TornApart):
            raise  # all ranks met already, and all raise; or they cannot be met
        except Exception as error:  # of any kind: the others wait at their next call, and have to hear of it
            self._exchange(left(error))
            raise
        self.meet(END)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around a request that takes turns with others: whoever serves them meets the other ranks."""
        self.inside = None
        try:
            yield
        except PeerLeft:
            raise
        except Exception as error:  # of any kind: where the others are inside too, the job ends
            if self.inside is not None and self.size > 1:
                raise TornApart(f"{type(error).__name__}: {error} (inside the sharded {self.inside})") from error
            raise

    def meet(self, place: str) -> None:
        """Wait for all ranks; raises PeerLeft on this one where another's request failed, OutOfStep where it went
        elsewhere. Collective. In a turn, whoever serves the turns meets the other ranks for it."""
        if self.size > 1 and this_turn() is not None:
            self.any(False, place)
            return
        places = self._together(place)
        if len(set(places.values())) > 1:
            raise out_of_step(places)

    def any(self, flag: bool, place: str) -> bool:
        """Whether any rank says so. Collective; raises what `meet` raises."""
        if self.size > 1 and (turn := this_turn()) is not None:
            turn.place, turn.where, turn.flag = turn.place._replace(block=VOTE), place, flag
            turn.wait()
            assert turn.flag is not None
            return turn.flag
        said = {f"{place}: {answer}": answer for answer in (True, False)}
        places = self._together(f"{place}: {flag}")
        if set(places.values()) - set(said):
            raise out_of_step(places)
        return any(said[place] for place in places.values())

    def compare(self, places: Sequence[str]) -> list[list[str]]:
        """The places of all turns of a group: for each turn those of all ranks, as many on each. Collective."""
        if len(set(gather_int(zlib.crc32("\n".join(places).encode()), self.group))) == 1:
            return [[place] * self.size for place in places]
        return [list(ranks) for ranks in zip(*gather(list(places), self.group), strict=True)]

    def _together(self, place: str) -> dict[int, str]:
        """The place of each rank, by its number in the world."""
        places = dict(zip(ranks_of(self.group), self._exchange(place), strict=True))
        if gone := who_left(places):
            raise gone
        return places

    def _exchange(self, place: str) -> list[str]:
        """The places of all ranks. Where all are the same, that costs one small collective."""
        if len(set(gather_int(zlib.crc32(place.encode()), self.group))) == 1:
            return [place] * self.size
        return gather(place, self.group)


def left(error: BaseException) -> str:
    """The place of a request that failed."""
    return f"{_LEFT}{type(error).__name__}: {error}"


def who_left(places: Mapping[int, str]) -> PeerLeft | None:
    """What the other ranks raise, by the place of each rank's request."""
    gone = [f"rank {rank} {place}" for rank, place in places.items() if place.startswith(_LEFT)]
    return PeerLeft("; ".join(gone)) if gone else None


def out_of_step(places: Mapping[int, str]) -> OutOfStep:
    return OutOfStep("; ".join(f"rank {rank} is at {place}" for rank, place in places.items()))
