"""What became of a request."""

from dataclasses import dataclass

import torch

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
