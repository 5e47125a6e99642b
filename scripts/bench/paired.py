"""Time several ways to do one thing against each other: each round takes each of them once, in random order.

Ratios are paired within a round, so that a slow spell of the machine hits both sides. The order is the same on all
ranks. The clock's time is that of the slowest rank. The processor's time, a rank's mean, leaves out the time spent
waiting: for other ranks, and for other programs that want the cores. `quiet` is the ratio of the 10th percentiles of
the processor's times: what other programs disturbed is left out, so on a busy machine it is the steadiest of the three.
"""

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

import numpy as np
import torch

from bench.ratios import note
from runner.world import World

Arm = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Spread:
    """The median and the 10th and 90th percentiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        low, median, high = (float(value) for value in np.percentile(values, (10, 50, 90)))
        return cls(median, low, high)


@dataclass(frozen=True)
class Times:
    """Seconds by arm, one value for each round: by the `clock`, and of the `processor`."""

    clock: Mapping[str, np.ndarray]
    processor: Mapping[str, np.ndarray]

    def ratio(self, top: str, bottom: str) -> Spread:
        """Of the clock's times."""
        return Spread.of(self.clock[top] / self.clock[bottom])

    def processor_ratio(self, top: str, bottom: str) -> Spread:
        return Spread.of(self.processor[top] / self.processor[bottom])

    def quiet_ratio(self, top: str, bottom: str) -> float:
        return Spread.of(self.processor[top]).low / Spread.of(self.processor[bottom]).low


def refuse_unequal(arms: Mapping[str, Arm], expected: torch.Tensor, world: World) -> None:
    """Run each arm once; leave the benchmark where one gives other bits than expected, on any rank."""
    differing = [name for name, arm in arms.items() if not torch.equal(arm(), expected)]
    for rank, names in enumerate(world.gather(differing)):
        if names:
            raise SystemExit(f"rank {rank}: other bits than the unsharded model from {', '.join(names)}; not timed")


def measure(arms: Mapping[str, Arm], rounds: int, world: World, seed: int = 0, warmup: int = 3) -> Times:
    """Collective: the arms are run by all ranks together."""
    order = random.Random(seed)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for number in range(warmup + rounds):
            for name in order.sample(list(arms), len(arms)):
                gc.collect()
                elapsed = _time(arms[name], world)
                if number >= warmup:
                    times[name].append(elapsed)
    finally:
        gc.enable()
        gc.unfreeze()
    ranks = np.array(world.gather([times[name] for name in arms]))  # (rank, arm, round, clock or processor)
    clock, processor = ranks[..., 0].max(axis=0), ranks[..., 1].mean(axis=0)
    return Times(dict(zip(arms, clock, strict=True)), dict(zip(arms, processor, strict=True)))


def _time(arm: Arm, world: World) -> tuple[float, float]:
    _finish()
    world.gather(None)  # start together
    clock, processor = time.perf_counter(), time.process_time()
    arm()
    _finish()
    return time.perf_counter() - clock, time.process_time() - processor


def _finish() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def report(
    times: Times,
    ratios: Mapping[str, tuple[str, str]],
    world: World,
    title: str = "",
    aims: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, object]:
    """Print the table on rank 0; returns the figures. `title` says what was measured, `aims` what a ratio should be at
    most."""
    figures: dict[str, object] = {}
    lines = [f"  {'':35}{'clock':>10}{'10th .. 90th':>20}   {'processor':>10}{'10th .. 90th':>20}{'quiet':>9}"]
    for arm in times.clock:
        both = Spread.of(times.clock[arm] * 1e3), Spread.of(times.processor[arm] * 1e3)
        lines.append(f"  {arm + ', ms':35}{_columns(both, 1)}")
        figures[arm] = {"clock_ms": asdict(both[0]), "processor_ms": asdict(both[1])}
    for label, (top, bottom) in ratios.items():
        both = times.ratio(top, bottom), times.processor_ratio(top, bottom)
        quiet = times.quiet_ratio(top, bottom)
        lines.append(f"  {label:35}{_columns(both, 3)}{quiet:9.3f}")
        figures[label] = {"clock": asdict(both[0]), "processor": asdict(both[1]), "quiet": quiet}
        if world.rank == 0:
            note(f"{title}: {label}" if title else label, times.clock[top] / times.clock[bottom], aims.get(label))
    if world.rank == 0:
        print("\n".join(lines), flush=True)
    return figures


def _columns(spreads: tuple[Spread, Spread], digits: int) -> str:
    spans = (f"{spread.low:.{digits}f} .. {spread.high:.{digits}f}" for spread in spreads)
    return "   ".join(f"{s.median:10.{digits}f}{span:>20}" for s, span in zip(spreads, spans, strict=True))
