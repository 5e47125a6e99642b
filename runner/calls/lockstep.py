"""Ranks that make sharded calls together agree before each one, so that one rank's error does not hang the others.

A sharded component gathers its weights from all ranks: a rank that raised, or that went another way through the
pipeline, would leave the others waiting in a collective. So all ranks meet before each such call, on the host and
beside the weights' traffic: they exchange one number that stands for the place in the pipeline. Where the numbers
differ, all of them leave the wave at once, and say why.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from runner.world import World
from weights.agreement import gather_int

_LEFT = "left: "
_END = "the end"


class PeerLeft(RuntimeError):
    """Another rank's request failed, so this rank's could not go on: it is not to blame, and may be made again."""


class OutOfStep(PeerLeft):
    """The ranks' requests went different ways through the pipeline, although they are alike in their arguments."""


class TornApart(RuntimeError):
    """A rank failed inside a sharded call. The others are inside too, and cannot be met there: the job has to end."""


class Lockstep:
    """`Lockstep(None)` is for components of which none is sharded: no rank waits for another."""

    def __init__(self, world: World | None) -> None:
        self.world = world if world is not None and world.size > 1 else None
        self.inside: str | None = None  # the sharded call that this rank is in, or failed in

    @property
    def is_needed(self) -> bool:
        return self.world is not None

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around one request on every rank. Collective where it is needed, also when the request raises."""
        self.inside = None
        try:
            yield
        except PeerLeft:
            raise  # all ranks met already, and all raise
        except Exception as error:
            if self.inside is not None and self.is_needed:
                raise TornApart(f"{type(error).__name__}: {error} (inside the sharded {self.inside})") from error
            self._leave(error)
            raise
        self.meet(_END)

    def meet(self, place: str) -> None:
        """Wait for all ranks; raises PeerLeft on this one where another's request failed, OutOfStep where it went
        elsewhere. Collective."""
        places = self._exchange(place)
        left = [f"rank {rank} {other}" for rank, other in enumerate(places) if other.startswith(_LEFT)]
        if left:
            raise PeerLeft("; ".join(left))
        if len(set(places)) > 1:
            raise OutOfStep("; ".join(f"rank {rank} is at {other}" for rank, other in enumerate(places)))

    def _leave(self, error: Exception) -> None:
        self._exchange(f"{_LEFT}{type(error).__name__}: {error}")

    def _exchange(self, place: str) -> list[str]:
        """The places of all ranks; [place] where all are the same, which costs one small collective."""
        if self.world is None:
            return [place]
        if len(set(gather_int(zlib.crc32(place.encode()), self.world.control))) == 1:
            return [place]
        return self.world.gather(place)
