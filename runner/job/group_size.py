"""How many requests to make together, chosen from what the first ones took."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import offload
from runner.components.component import Component
from runner.groups.meter import Meter, Passes
from runner.health.stderr import say
from runner.pipeline.pipeline import Pipeline
from runner.trace.sums import Sum

LARGEST = 16  # that `auto` chooses: what a fault costs, and how long the first picture takes, grow with it
ENOUGH = 0.03  # a larger group has to save this part of a request's time


@dataclass(frozen=True)
class Measured:
    """What a component's moving weights took in one request on one rank: `passes` over them; seconds of a pass that a
    request needs for itself, `compute`, of which the pipeline's own code beside it is a part; seconds that the blocks
    take to come up, `transfer`. `overlap`: the one hides behind the other. `once`: seconds that all else of it takes to
    come up, before the first pass."""

    passes: int
    compute: float
    transfer: float
    overlap: bool
    once: float = 0.0

    def seconds(self, number: int) -> float:
        """For each request of a group of so many."""
        shared = self.transfer / number
        each = max(self.compute, shared) if self.overlap else self.compute + shared
        return self.passes * each + self.once / number


@dataclass(frozen=True)
class Figures:
    """Of one rank: its components by name, seconds of a request that are none of theirs, how many further paused calls
    the memory holds (None where nobody counts it), and of how many requests together they were measured."""

    components: dict[str, Measured]
    rest: float
    room: int | None
    calls: int = 1

    def seconds(self, number: int) -> float:
        return self.rest + sum(component.seconds(number) for component in self.components.values())


@dataclass(frozen=True)
class Choice:
    """`number` requests are made together; why, and what each size would take, in seconds a request."""

    number: int
    reason: str
    expected: dict[int, float]
    figures: Sequence[Figures] = ()

    def described(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "chosen": self.number,
            "reason": self.reason,
            "seconds_expected": {str(number): round(seconds, 4) for number, seconds in self.expected.items()},
            "ranks": [asdict(figures) for figures in self.figures],
        }


def choose(ranks: Sequence[Figures], requests: int) -> Choice:
    """The smallest group with which the requests take no longer, within 3 %, than with the best one that can be.

    `requests`: how many each rank has left, at most; they are made in waves that are as alike as can be (`Waves`). The
    slowest rank decides, since a wave waits for it.
    """
    rooms = [figures.room for figures in ranks if figures.room is not None]
    largest = max(1, min([LARGEST, requests, *(1 + room for room in rooms)]))
    expected = {n: max(_seconds_in_waves(figures, requests, n) for figures in ranks) for n in range(1, largest + 1)}
    best = min(expected.values())
    number = next(n for n, seconds in expected.items() if seconds <= best * (1 + ENOUGH))
    reason = f"one by one a request takes {expected[1] / expected[number]:.2f} x as long" if number > 1 else "no gain"
    if rooms and number == largest == 1 + min(rooms):
        reason += "; the memory holds no more"
    return Choice(number, reason, expected, ranks)


def _seconds_in_waves(figures: Figures, requests: int, together: int) -> float:
    """For each of the requests, where at most so many are made together."""
    requests = max(requests, 1)
    waves = -(-requests // together)
    smaller, larger = divmod(requests, waves)  # so many waves have one request more than the others
    sizes = {smaller + 1: larger, smaller: waves - larger}
    return sum(waves * size * figures.seconds(size) for size, waves in sizes.items() if waves) / requests


class GroupSize:
    """`together` is how many requests a rank makes together: as asked, or for `auto` chosen from a measured one, and
    chosen again from the groups that follow until they are large enough: so long it `is_open`. All that is the same on
    all ranks.

    [Note: measured again] A block computes faster for the second call than for the first, whose weights are in no
    cache yet: what one request takes alone says too much of what each of several takes, and the group would be too
    small to hide its transfers. In a group of the size that is chosen it is measured as it is.
    """

    def __init__(self, asked: int | str, pipeline: Pipeline) -> None:
        self._pipeline, alone = pipeline, pipeline.why_alone
        self.is_open = asked == "auto" and alone is None and pipeline.moves_weights
        self.together = asked if isinstance(asked, int) and alone is None else 1
        if asked != self.together and isinstance(asked, int) and pipeline.world.rank == 0:
            say(f"job.group={asked}: requests are made one by one, since {alone}")
        unasked = "none was made" if self.is_open else "no weights move"
        reason = alone or ("as asked" if isinstance(asked, int) else unasked)
        self.choice = Choice(self.together, reason, {})
        pipeline.group = self.choice.described()

    def meter(self) -> Meter | None:
        """To measure the next wave with, where that is still to be done. The same on all ranks."""
        pipeline = self._pipeline
        return Meter(pipeline.components, pipeline.world.device, pipeline.recorder) if self.is_open else None

    def choose(self, meter: Meter, left: int) -> None:
        """From what each rank has measured, where all that made a request did. Collective; `left`: for each rank."""
        figures = [one for one in self._pipeline.world.gather(figures_of(meter, self._pipeline)) if one is not None]
        if figures and left:
            self.choice = choice = choose(figures, max(left, self.together))  # the last few make it no smaller
            self.together, self.is_open = choice.number, choice.number > self.together
            self._pipeline.group = choice.described()


def figures_of(meter: Meter, pipeline: Pipeline) -> Figures | None:
    """None where nothing was denoised: by an idle rank, or because the request failed, or was answered by its log."""
    if not meter.has_denoised:
        return None
    by_name = {component.name: component for component in pipeline.components}
    fetched = meter.fetched()
    measured = {name: _measured(one, by_name[name], fetched.get(name, Sum())) for name, one in meter.passes.items()}
    shared = sum(passes.seconds for passes in meter.passes.values()) + sum(one.once for one in measured.values())
    return Figures(measured, max(meter.seconds - shared, 0.0) / meter.calls, meter.room, meter.calls)


def _measured(passes: Passes, component: Component, fetched: Sum) -> Measured:
    """What is gathered hides behind computing where both are queued; on the CPU one comes after the other."""
    number, offloader = len(passes.done), offload.offloader_of(component.module)
    if offloader is None:
        return Measured(number, passes.own, passes.waited, component.placement.devices != "cpu")
    a_pass = sum(offloader.store.packings[name].num_bytes for name in offloader.moving_blocks)
    transfer = fetched.seconds * a_pass / max(fetched.num_bytes, 1)
    return Measured(number, passes.own, transfer, True, max(fetched.seconds - number * transfer, 0.0))
