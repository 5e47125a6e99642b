"""What time it is: on a device whose work is queued, and on the other ranks.

[Note: clocks] Work on an accelerator runs long after it was queued, so its moments are events in its streams, read when
the work is over anyhow. Hosts differ too: each rank counts from a second 0 of its own, and learns at the start how far
that is from rank 0's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, time
from typing import Any, Protocol

import torch
import torch.distributed as dist

from offload.engines.stream import has_streams
from weights.agreement import Group, from_first, rank_in, ranks_of, size_of
from weights.observer import Moment

ROUNDS = 12  # of question and answer with each rank


class Clock(Protocol):
    """Of what one device computes. Seconds are those of `time.perf_counter()`."""

    def now(self, stream: Any = None) -> Moment:
        """This moment of what is computed, or queued on a stream. Waits for nothing."""

    def is_over(self, moment: Moment) -> bool:
        """Whether `seconds` can tell it yet. Waits for nothing."""

    def seconds(self, moment: Moment) -> float:
        """When it was."""

    def settle(self) -> None:
        """From now on all moments so far can be told. Waits for the device."""

    def renew(self) -> None:
        """Once all moments so far were told. Waits for the device."""


class HostClock:
    """Where a call returns when its work is done."""

    def now(self, stream: Any = None) -> float:
        return perf_counter()

    def is_over(self, moment: Moment) -> bool:
        return True

    def seconds(self, moment: Moment) -> float:
        assert isinstance(moment, float)
        return moment

    def settle(self) -> None:
        pass

    def renew(self) -> None:
        pass


class EventClock:
    """Where work is queued on streams: a moment is an event, told by how long after a known one it was. That one is
    renewed whenever the device is waited for: torch tells the time between two in a float of 24 bits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._anchor, self._anchored = self._synchronized()

    def now(self, stream: Any = None) -> torch.Event:
        event = torch.Event(self._device, enable_timing=True)
        event.record(stream or torch.accelerator.current_stream(self._device))
        return event

    def is_over(self, moment: Moment) -> bool:
        return isinstance(moment, float) or moment.query()

    def seconds(self, moment: Moment) -> float:
        if isinstance(moment, float):
            return moment
        return self._anchored + self._anchor.elapsed_time(moment) / 1000

    def settle(self) -> None:
        torch.accelerator.synchronize(self._device)

    def renew(self) -> None:
        self._anchor, self._anchored = self._synchronized()

    def _synchronized(self) -> tuple[torch.Event, float]:
        torch.accelerator.synchronize(self._device)
        event = self.now()
        event.synchronize()
        return event, perf_counter()


def clock_for(device: torch.device) -> Clock:
    return EventClock(device) if device.type != "cpu" and has_streams(device) else HostClock()


@dataclass(frozen=True)
class Offset:
    """Rank 0's clock shows `seconds` more than this rank's, give or take `error`."""

    seconds: float = 0.0
    error: float = 0.0


def offset_from_first(group: Group, now: Callable[[], float] = perf_counter) -> Offset:
    """How far this rank's clock is from the first rank's. Collective.

    Each rank asks the first one what time it is, a few times over. The answer was given between question and receipt;
    the round trip that took least says it best, and is off by half of it at most (Cristian, 1989). A mean or a median
    would mix in rounds in which one of the two hosts was busy.
    """
    if size_of(group) == 1:
        return Offset()
    if rank_in(group) == 0:
        for rank in range(1, size_of(group)):
            _answer(rank, group, now)
        return Offset()
    return min((_ask(group, now) for _ in range(ROUNDS)), key=lambda offset: offset.error)


def _answer(rank: int, group: Group, now: Callable[[], float]) -> None:
    other, question = ranks_of(group)[rank], torch.empty(1, dtype=torch.float64)
    for _ in range(ROUNDS):
        dist.recv(question, src=other, group=group)
        dist.send(torch.tensor([now()], dtype=torch.float64), dst=other, group=group)


def _ask(group: Group, now: Callable[[], float]) -> Offset:
    first, answer = ranks_of(group)[0], torch.empty(1, dtype=torch.float64)
    asked = now()
    dist.send(answer, dst=first, group=group)
    dist.recv(answer, src=first, group=group)
    received = now()
    return Offset(float(answer) - (asked + received) / 2, (received - asked) / 2)


@dataclass(frozen=True)
class Start:
    """Second 0 of all ranks: what this rank's own clock showed then, what time of the day it was for rank 0 (seconds
    since 1970), and how far the first of these may be off."""

    own: float
    began: float
    error: float = 0.0


def common_start(group: Group, now: Callable[[], float] = perf_counter) -> Start:
    """Collective."""
    offset = offset_from_first(group, now)
    first, began = from_first((now(), time()), group)
    return Start(first - offset.seconds, began, offset.error)
