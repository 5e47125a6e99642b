"""What a rank is doing now: written by the pipeline and the job in the main thread, read by the watch in its own."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic

from runner.request import Request

WAITING = "waiting"  # for the other ranks of the wave
SOON = 0.05  # seconds between two of the many switches that the listener is told of


@dataclass(frozen=True)
class At:
    """Where a request is that takes turns with others."""

    stage: str
    component: str | None
    request: Request | None


@dataclass(frozen=True)
class Extent:
    """How much there is to do in a run: `total` requests, of which earlier runs have settled some."""

    total: int = 0
    made_before: int = 0
    failed_before: int = 0


@dataclass
class Progress:
    """`stage` and `component` are where the current request is, or was last, for error reports."""

    rank: int = 0
    stage: str = "start"
    component: str | None = None
    request: Request | None = None  # while one is being made
    begun: Sequence[Request] = ()  # what all ranks are making or writing, until it is recorded
    calls: int = 0  # of components, so far
    switches: int = 0  # to another request of a group
    steps: dict[str, tuple[int, int]] = field(default_factory=dict)  # of each request in the making: done, of how many
    made: int = 0  # requests, by this rank in this run
    failed: int = 0
    extent: Extent | None = None  # of the job, once it is known
    note: str = ""  # what else a person may want to know
    told: float = 0.0  # when the listener was told of a switch
    listener: Callable[[], None] = field(default=lambda: None, repr=False)  # told when another request begins
    turns_to: Callable[[Request], None] | None = field(default=None, repr=False)  # told of every switch
    failed_beside: "tuple[At, BaseException] | None" = None  # in another thread; the main one is to raise it
    _lock: Lock = field(default_factory=Lock, repr=False)  # of what two threads count

    def doing(self, stage: str, component: str | None = None) -> None:
        self.stage, self.component = stage, component

    def making(self, request: Request) -> None:
        """From now on this rank makes a request, until `waiting` or `doing` something else."""
        self.stage, self.component, self.request = "start", None, request
        if self.turns_to is not None:
            self.turns_to(request)
        self.listener()

    def calling(self, stage: str, component: str) -> None:
        self.check()
        self.doing(stage, component)
        self.calls += 1

    @property
    def at(self) -> At:
        return At(self.stage, self.component, self.request)

    def go_to(self, at: At) -> None:
        """Another request of the group goes on, where it was. The listener hears of it (what ends a rank without a word
        is laid to the request that it told of last), but not of each of a thousand a second."""
        self.stage, self.component, self.request = at.stage, at.component, at.request
        self.switches += 1
        if self.turns_to is not None and at.request is not None:
            self.turns_to(at.request)
        if (now := monotonic()) - self.told > SOON:
            self.told = now
            self.listener()

    def stepped(self, id: str, done: int, total: int) -> None:
        """The request has begun a loop of so many steps, or made another of them."""
        self.steps[id] = done, total

    def over(self, id: str, *, made: int = 0, failed: int = 0) -> None:
        """The request is no longer in the making; it may have been made, or have failed."""
        with self._lock:
            self.steps.pop(id, None)
            self.made += made
            self.failed += failed

    def fail_from_beside(self, request: Request | None, stage: str, error: BaseException) -> None:
        """From another thread: this ends the job. The main one raises it at its next call of a component."""
        self.failed_beside = (At(stage, None, request), error)

    def check(self) -> None:
        """Raise what another thread failed with, as if it were this one, and there."""
        if self.failed_beside is not None:
            at, error = self.failed_beside
            self.stage, self.component, self.request = at.stage, at.component, at.request
            raise error

    def waiting(self) -> None:
        self.stage, self.component, self.request = WAITING, None, None

    def begin(self, requests: Sequence[Request]) -> None:
        """All ranks together begin these."""
        self.begun = [*self.begun, *requests]

    def end(self, ids: Collection[str]) -> None:
        """It is recorded what became of these."""
        self.begun = [request for request in self.begun if request.id not in ids]

    def position(self) -> tuple[str, str | None, int, int]:
        """Changes whenever this rank gets on."""
        return self.stage, self.request.id if self.request else None, self.calls, self.switches
