"""What is added up while requests are made."""

from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from runner.trace.interval import Interval, Lane


class Kind(NamedTuple):
    """What is added up apart."""

    name: str
    lane: Lane
    stage: str = ""
    component: str = ""
    is_warm_up: bool = False  # the first step of a request, or the first call of a component that takes no steps
    inside: str = ""  # "component" or "request"; "" between requests, "beside" in another thread


@dataclass(slots=True)
class Sum:
    seconds: float = 0.0
    times: int = 0  # what paused is counted once
    num_bytes: int = 0


def sums_of(intervals: Iterable[Interval]) -> dict[Kind, Sum]:
    """The same sums, of a file's intervals: for a job that was killed, or that still runs."""
    everything = sorted(intervals, key=lambda one: (one.begin, -one.end))
    inside = {
        name: [(one.begin, one.end) for one in everything if one.name == name] for name in ("component", "request")
    }
    is_warm_up = _warm_ups(everything)
    sums: dict[Kind, Sum] = {}
    for one in everything:
        within = next((name for name, spans in inside.items() if _is_within(one, spans)), "")
        within = "" if one.name in inside or one.lane is Lane.prefetch else within
        kind = Kind(one.name, one.lane, one.stage, one.component, is_warm_up(one), within)
        total = sums.setdefault(kind, Sum())
        total.seconds += one.seconds
        total.times += not one.goes_on
        total.num_bytes += one.num_bytes
    return sums


def _is_within(one: Interval, spans: list[tuple[float, float]]) -> bool:
    """`spans` follow each other."""
    at = bisect(spans, (one.begin, float("inf"))) - 1
    return at >= 0 and one.end <= spans[at][1] + 1e-6


def steps_of(intervals: Iterable[Interval]) -> dict[tuple[str, bool], int]:
    """How many steps there were, by stage and whether they were warm-ups; calls, where steps are not counted."""
    calls = [one for one in intervals if one.name == "component" and not one.goes_on]
    is_warm_up = _warm_ups(calls)
    steps: dict[tuple[str, bool], set[tuple[str, object]]] = {}
    for number, one in enumerate(calls):
        which = ("", number) if one.step is None else (one.request, one.step)
        steps.setdefault((one.stage, is_warm_up(one)), set()).add(which)
    return {key: len(found) for key, found in steps.items()}


def _warm_ups(intervals: Iterable[Interval]) -> Callable[[Interval], bool]:
    """Whether an interval is of a first step, or no later than a first call of a component that takes no steps."""
    ends: dict[str, float] = {}
    for one in intervals:
        if one.name == "component" and not one.goes_on:
            ends[one.component] = min(one.end, ends.get(one.component, one.end))

    def is_warm_up(one: Interval) -> bool:
        return one.step == 0 if one.step is not None else one.begin <= ends.get(one.component, one.begin)

    return is_warm_up
