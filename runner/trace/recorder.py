"""Keeps what a rank did, and when: sums always, the intervals themselves where a trace is wanted.

[Note: what recording costs] What is told is put into a queue, as it is: a tuple, and on an accelerator two events. It
is added up when the requests that are being made are over, or when the queue is long; nothing is waited for before.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any, NamedTuple

from runner.trace.clock import Clock, HostClock, Start
from runner.trace.interval import Interval, Lane
from runner.trace.sums import Kind, Sum
from weights.observer import Moment

LONG = 1_000  # told and not added up yet; more would be old to the garbage collector, which then looks at all there is
MOST = 500_000  # intervals that a rank keeps: some 80 MB of its file


@dataclass(slots=True)
class Range:
    """What is under way. One that pauses is several intervals."""

    kind: Kind
    block: str
    request: str
    step: int | None
    began: Moment
    within: str  # what is inside of it is inside a "component", or a "request"
    num_bytes: int = 0
    counted: int | None = None  # of a request: the step that was counted last


class _Told(NamedTuple):
    kind: Kind
    block: str
    request: str
    step: int | None
    began: Moment
    ended: Moment
    num_bytes: int
    times: int


@dataclass(slots=True)
class _Calls:
    """Where a component's calls are, for what is told of its weights."""

    stage: str
    is_warm_up: bool = True
    step: int | None = None
    number: int = 0
    kinds: dict[tuple[str, str, str, bool], Kind] = field(default_factory=dict)


@dataclass
class Details:
    """The intervals, with those of single blocks, are wanted: where they go, and when second 0 was."""

    start: Start
    keep: Callable[[Sequence[Interval]], None]
    left: int = MOST
    dropped: int = 0


class Recorder:
    """Of one rank. `now` and `tell` may be called from any thread, the rest from the one that computes."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or HostClock()
        self.details: Details | None = None
        self.steps: dict[tuple[str, bool], int] = {}  # of all requests: by the stage, and whether it was a warm-up
        self._thread = get_ident()
        self._sums: dict[Kind, Sum] = {}
        self._told: deque[_Told] = deque()
        self._found: list[
            Interval
        ] = []  # until the requests that are being made are over: it takes a disk to keep them
        self._calls: dict[str, _Calls] = {}
        self._stage: tuple[Moment, str] | None = None  # since when, and which
        # Of the request that is being made, in its context: what is under way, the innermost last.
        self._open: ContextVar[tuple[Range, ...]] = ContextVar("_open", default=())

    def now(self, stream: Any = None) -> Moment:
        return self.clock.now(stream)

    def know(self, component: str, stage: str) -> None:
        """Before anything is told of the component."""
        self._calls[component] = _Calls(stage)

    # What happens.

    @contextmanager
    def request(self, request: str) -> Iterator[None]:
        """Around the making of a request, in its context."""
        with self._range(Kind("request", Lane.compute), request=request):
            yield

    @contextmanager
    def component(self, component: str, stage: str, step: int | None) -> Iterator[None]:
        """Around a call of a component, the outermost one; `step` of the denoising, None where it is not counted."""
        calls = self._calls.setdefault(component, _Calls(stage))
        calls.stage, calls.step = stage, step
        calls.is_warm_up = step == 0 if step is not None else calls.number == 0
        calls.number += 1
        self._count(stage, calls)
        with self._range(Kind("component", Lane.compute, stage, component, calls.is_warm_up), step=step):
            yield
        if len(self._told) >= LONG:
            self._add_up(all_of_it=False)

    @contextmanager
    def range(
        self, name: str, lane: Lane, *, component: str = "", block: str = "", request: str = "", num_bytes: int = 0
    ) -> Iterator[Range]:
        """Around anything else that this thread does or waits for. What moved may be set on what is yielded."""
        kind, step = self._of(name, lane, component)
        with self._range(kind, block=block, request=request, step=step, num_bytes=num_bytes) as under_way:
            yield under_way

    def tell(
        self,
        name: str,
        lane: Lane,
        component: str,
        block: str,
        began: Moment,
        ended: Moment,
        num_bytes: int = 0,
        request: str = "",
    ) -> None:
        """Something that is over, or queued."""
        kind, step = self._of(name, lane, component)
        around = self._open.get()
        request = request or (around[0].request if around else "")
        self._told.append(_Told(kind, block, request, step, began, ended, num_bytes, 1))

    def of_weights(self, component: str) -> "OfWeights":
        """Who is told of a component's weights."""
        return OfWeights(self, component)

    def begin_block(self, component: str, block: str) -> None:
        """A call of the block begins, in a request that is being made."""
        if around := self._open.get():
            kind, step = self._of("block", Lane.compute, component)
            self._open.set((*around, Range(kind, block, around[0].request, step, self.now(), around[-1].within)))

    def end_block(self, component: str, block: str) -> None:
        """Of the one that began last, if it is this one: of a call that was refused, only the end is heard."""
        around = self._open.get()
        if around and around[-1].block == block and around[-1].kind.component == component:
            self._open.set(around[:-1])
            self._end(around[-1], self.now(), times=1)

    def enter_stage(self, stage: str | None) -> None:
        """Of all requests that are made together; None: they are made."""
        if self.details is not None and self._stage is not None:
            began, name = self._stage
            kind = Kind(name, Lane.stage, stage=name)
            self._told.append(_Told(kind, "", "", None, began, self.now(), 0, 1))
        self._stage = None if stage is None else (self.now(), stage)

    def pause(self) -> None:
        """What is under way in this context stands still, and others have their turn."""
        if around := self._open.get():
            now = self.now()
            for one in around:
                self._end(one, now, times=0)

    def go_on(self) -> None:
        if around := self._open.get():
            now = self.now()
            for one in around:
                one.began = now

    # What became of it.

    def settle(self) -> None:
        """Add up what was told, and hand out its intervals. Waits for the device: between requests."""
        self.clock.settle()
        self._add_up(all_of_it=True)
        self.clock.renew()
        if self.details is not None and self._found:
            kept = self._found[: self.details.left]
            self.details.left -= len(kept)
            self.details.dropped += len(self._found) - len(kept)
            self.details.keep(kept)
            self._found = []

    def forget(self) -> None:
        """What was told so far: of calls that only tried something out. Waits for the device: between requests."""
        self.settle()
        self._sums.clear()
        self.steps.clear()

    @property
    def sums(self) -> dict[Kind, Sum]:
        """Of all that could be told without waiting."""
        self._add_up(all_of_it=False)
        return self._sums

    def stages(self) -> dict[str, Sum]:
        """The calls of each stage's components, and what they took, with waits for weights that came up for several."""
        stages: dict[str, Sum] = {}
        for kind, total in self.sums.items():
            is_call, is_wait = kind.name == "component", kind.name == "wait" and not kind.inside
            if is_call or is_wait:
                stage = stages.setdefault(kind.stage, Sum())
                stage.seconds += total.seconds
                stage.times += total.times if is_call else 0
        return stages

    def calls(self, stage: str) -> int:
        """Of its components, so far."""
        return self.stages().get(stage, Sum()).times

    @contextmanager
    def _range(
        self, kind: Kind, *, block: str = "", request: str = "", step: int | None = None, num_bytes: int = 0
    ) -> Iterator[Range]:
        around = self._open.get()
        request = request or (around[0].request if around else "")
        within = kind.name if kind.name in ("component", "request") else around[-1].within if around else ""
        one = Range(kind, block, request, step, self.now(), within, num_bytes)
        self._open.set((*around, one))
        try:
            yield one
        finally:
            self._open.set(around)
            self._end(one, self.now(), times=1)

    def _end(self, one: Range, now: Moment, times: int) -> None:
        num_bytes = one.num_bytes if times else 0
        self._told.append(_Told(one.kind, one.block, one.request, one.step, one.began, now, num_bytes, times))

    def _of(self, name: str, lane: Lane, component: str) -> tuple[Kind, int | None]:
        around = self._open.get()
        elsewhere = "" if get_ident() == self._thread else "beside"
        inside = around[-1].within if around else elsewhere
        calls = self._calls.get(component)
        if calls is None:
            return Kind(name, lane, component=component, inside=inside), None
        key = (name, inside, calls.stage, calls.is_warm_up)
        if (kind := calls.kinds.get(key)) is None:
            kind = calls.kinds[key] = Kind(name, lane, calls.stage, component, calls.is_warm_up, inside)
        return kind, calls.step

    def _count(self, stage: str, calls: _Calls) -> None:
        """A step once, however many calls it makes; a call where steps are not counted."""
        around = self._open.get()
        if around and calls.step is not None:
            if around[0].counted == calls.step:
                return
            around[0].counted = calls.step
        key = (stage, calls.is_warm_up)
        self.steps[key] = self.steps.get(key, 0) + 1

    def _add_up(self, *, all_of_it: bool) -> None:
        while self._told and (all_of_it or self.clock.is_over(self._told[0].ended)):
            told = self._told.popleft()
            began, ended = self.clock.seconds(told.began), self.clock.seconds(told.ended)
            total = self._sums.setdefault(told.kind, Sum())
            total.seconds += ended - began
            total.times += told.times
            total.num_bytes += told.num_bytes
            if self.details is not None:
                self._found.append(_interval(told, began - self.details.start.own, ended - self.details.start.own))


def _interval(told: _Told, begin: float, end: float) -> Interval:
    kind = told.kind
    return Interval(
        name=kind.name,
        lane=kind.lane,
        begin=begin,
        end=end,
        stage=kind.stage,
        component=kind.component,
        block=told.block,
        request=told.request,
        step=told.step,
        num_bytes=told.num_bytes,
        goes_on=told.times == 0,
    )


_LANES = {
    "prefetch": Lane.prefetch,
    "gather": Lane.prefetch,
    "wait": Lane.wait,
    "release": Lane.compute,
    "exchange": Lane.exchange,
}


class OfWeights:
    """The Observer of one component's weights, for the packages that move them."""

    def __init__(self, recorder: Recorder, component: str) -> None:
        self._recorder, self._component = recorder, component

    def now(self, stream: Any = None) -> Moment:
        return self._recorder.now(stream)

    def tell(self, name: str, block: str, began: Moment, ended: Moment, num_bytes: int = 0) -> None:
        if name != "release" or self._recorder.details is not None:
            self._recorder.tell(name, _LANES[name], self._component, block, began, ended, num_bytes)
