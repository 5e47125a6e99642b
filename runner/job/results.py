"""What became of a request."""

from dataclasses import dataclass

from runner.calls.lockstep import OutOfStep, PeerLeft
from runner.output.lines import Failure, ManifestLine
from runner.request import Request


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
    """To be made again: a request beside it ended their calls."""

    request: Request
    cause: PeerLeft

    @property
    def alone(self) -> bool:
        """Whether it only seemed to be like the requests beside it."""
        return isinstance(self.cause, OutOfStep)


@dataclass(frozen=True)
class Stopped:
    """Left inside, with so many calls in its log, because the job was asked to stop: the next run goes on there."""

    request: Request
    calls: int


Settled = Made | Failed
Result = Made | Failed | Repeat | Stopped
