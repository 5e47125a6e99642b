"""A request's call that can be paused in the middle, so that several take turns in one thread.

[Note: turns] Each turn is a greenlet of the main thread: a stack of its own, but the same thread. What torch and Python
keep for the thread or the process (modes, autocast, where the global generators stand) would leak from one request into
another at a switch; runner/calls/switches.py keeps it apart. Context variables are each turn's own by themselves.
Operating system threads would keep most of that apart, but they hide the work from the profiler, start a pool of
compute threads each, and leave no way to interrupt them.
"""

import contextvars
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple, Protocol

from greenlet import getcurrent, greenlet

from runner.calls.switches import Kept, as_it_was

BEGIN = -1  # the block of a place that is a component's call as a whole
VOTE = -2  # ... or a question to the other ranks, between two of its calls
JOIN = -3  # ... or the end of its branches


class Place(NamedTuple):
    """What a turn waits for. Places compare in the order in which a pipeline works."""

    stage: int
    component: int
    block: int = BEGIN

    @property
    def is_inside(self) -> bool:
        """Whether a call of the component is in progress."""
        return self.block > BEGIN


START = Place(-1, -1)


class Server(Protocol):
    """Who says whose turn it is: runner/groups/lift.py."""

    def at_call(self, turn: "Turn", stage: str, component: str, where: str) -> None:
        """In the turn: a call of the component, the outermost one, is about to begin; returns when it may."""

    def after_call(self, turn: "Turn") -> None:
        """In the turn: the call is over, and the pipeline's own code goes on."""

    def pausing(self) -> None:
        """In the turn: it is about to wait."""

    def going_on(self) -> None:
        """In the turn: it has waited."""

    def come_to(self, turn: "Turn", stage: str, component: str) -> None:
        """In the turn: what it waits for next belongs to the component, although no call of it was made here."""


class Abandoned(BaseException):
    """Thrown into a paused turn that is not to go on, because its group ends."""


@dataclass(eq=False)
class Turn:
    """One of the requests of a group. `place` is what it waits for, `where` the same in words; a turn that `is_over`
    has its `outcome`. `branches` are calls of it that are made together, each a turn of its own (`parent`), while it
    waits for all of them."""

    index: int
    body: Callable[[], Any]
    server: "Server"
    place: Place = START
    where: str = "start"
    flag: bool | None = None  # what it asks the other ranks, and then their answer
    stands: Mapping[str, int] = field(default_factory=dict)  # what the ranks of a team compare, when it began to wait
    has_begun: bool = False  # to denoise
    is_over: bool = False
    result: Any = None
    error: BaseException | None = None
    ended_as: str = ""  # what the other ranks are told, once it is over
    paused: float = 0.0  # seconds that it waited
    seconds: float = 0.0  # that it ran
    kept: Kept = field(default_factory=Kept)
    steps: Callable[[], tuple[int, int]] = lambda: (0, 0)  # done, and in all
    seconds_by_log: Callable[[], float | None] = lambda: None  # that it still needs; None where its calls have no log
    parent: "Turn | None" = None
    branches: list["Turn"] = field(default_factory=list)
    _greenlet: greenlet = field(init=False)

    def __post_init__(self) -> None:
        self._greenlet = greenlet(self._run)
        self._greenlet.gr_context = contextvars.copy_context()

    @property
    def open_branches(self) -> list["Turn"]:
        return [branch for branch in self.branches if not branch.is_over]

    def outcome(self) -> Any:
        """What the call gave; raises what it raised."""
        assert self.is_over
        if self.error is not None:
            raise self.error
        return self.result

    def resume(self, error: BaseException | None = None) -> None:
        """For the server: let it go on until it waits again or is over; with `error`, raise that where it waits."""
        if self.place is START and error is not None:
            self.is_over, self.error = True, error
            return
        self._greenlet.parent = getcurrent()
        began = perf_counter()
        with as_it_was():
            self._greenlet.switch() if error is None else self._greenlet.throw(error)
        self.seconds += perf_counter() - began
        if self.is_over:
            # Its context knows the turn, which knows it: what the call was made with, and what it gave, would be there
            # until Python looks for such circles.
            del self._greenlet

    def wait(self) -> None:
        """For what runs in the turn: pause until it may go on at its `place`."""
        began = perf_counter()
        self.server.pausing()
        try:
            with as_it_was():
                self._greenlet.parent.switch()
        finally:
            self.server.going_on()
            self.paused += perf_counter() - began

    def _run(self) -> None:
        _TURN.set(self)
        try:
            self.result = self.body()
        except BaseException as error:  # the server hands it on
            self.error = error
        self.is_over = True


_TURN: ContextVar[Turn | None] = ContextVar("_TURN", default=None)


def this_turn() -> Turn | None:
    """The turn that runs now; None where requests are made one by one."""
    return _TURN.get()


def seconds_paused() -> float:
    """How long this turn has waited for others so far: to be taken off what a clock says of its calls."""
    turn = _TURN.get()
    return 0.0 if turn is None else turn.paused
