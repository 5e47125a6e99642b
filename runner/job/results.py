"""What became of a request."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from runner.calls.lockstep import OutOfStep, PeerLeft
from runner.output.lines import Failure, ManifestLine
from runner.progress import Extent
from runner.request import Request
from runner.team import Team


@dataclass(frozen=True)
class Made:
    """Finished; `earlier`: by a run before this one."""

    request: Request
    line: ManifestLine
    earlier: bool = False


@dataclass(frozen=True)
class Failed:
    """Tried, and recorded with its reason; `earlier`: given up before this run."""

    request: Request
    failure: Failure
    earlier: bool = False


@dataclass(frozen=True)
class Repeat:
    """To be made again: a request beside it ended their calls, or those of its group took the memory."""

    request: Request
    cause: PeerLeft | torch.OutOfMemoryError

    @property
    def alone(self) -> bool:
        """Whether it only seemed to be like the requests beside it, or needs the memory for itself."""
        return not isinstance(self.cause, PeerLeft) or isinstance(self.cause, OutOfStep)


@dataclass(frozen=True)
class Stopped:
    """Left inside, with so many calls in its log, because the job was asked to stop: the next run goes on there."""

    request: Request
    calls: int


Settled = Made | Failed
Result = Made | Failed | Repeat | Stopped
_BECAUSE_OF_ANOTHER = (PeerLeft.__name__, OutOfStep.__name__)
_HEARD = (3, 4)  # of `_how_far`: what another rank may know better


def is_settled_by(result: Result, team: Team) -> bool:
    """Whether this rank's word on its request is the last one, so that it may be recorded at once."""
    return team.size == 1 or (team.is_first and _how_far(result) not in _HEARD)


def of_team(ranks: Sequence[Sequence[Result]]) -> list[Result]:
    """What became of a team's requests, in the order of its first rank, from what each of its ranks says.

    A rank says nothing of a request that it made, unless it is the first, which wrote it. The others know better why it
    was not: of a request that one rank could not go on with, the rest say only that somebody left.
    """
    said: dict[str, list[Result]] = {}
    for result in (result for results in ranks for result in results):
        said.setdefault(result.request.id, []).append(result)
    return [min(results, key=_how_far) for results in said.values()]


def _how_far(result: Result) -> int:
    """From the cause: its own failure, a stop, a lack of memory in a group; then what another rank's did to it."""
    if isinstance(result, Failed):
        return 0 if result.failure.error not in _BECAUSE_OF_ANOTHER else 3
    if isinstance(result, Stopped):
        return 1
    if isinstance(result, Repeat):
        return 2 if not isinstance(result.cause, PeerLeft) else 4
    return 5


def extent_of(settled: Sequence[Settled], total: int) -> Extent:
    """Of a run that finds so many of its requests settled."""
    made = sum(isinstance(result, Made) for result in settled)
    return Extent(total, made, len(settled) - made)
