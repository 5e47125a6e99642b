"""The placements of all components together that serve best within the memory; how, is told in front.py."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from runner.config import PlacementConfig, Rest, Share
from runner.plan.front import CHANGED, SECONDS, Limits, Lots, closed, empty, joined, least, unbeaten
from runner.plan.machine import Machine, Rates
from runner.plan.model import Model, part_of
from runner.plan.needs import Part, needs, shortages
from runner.plan.seconds import request_seconds
from runner.plan.sizes import Sizes
from runner.plan.work import Workload

_FEW, _MOST = 30, 300  # lots of a front: to find a good one, and in the end
_GRID = 12  # numbers of resident blocks that are tried


@dataclass(frozen=True)
class Found:
    """A placement of every component, with the seconds of a request."""

    parts: tuple[Part, ...]
    seconds: float
    changed: int

    def words(self) -> list[str]:
        """As one would write it on a command line."""
        return [word for part in self.parts for word in words_of(part.name, part.placement)]


def words_of(name: str, placement: PlacementConfig) -> Iterator[str]:
    default = PlacementConfig()
    for key in ("share", "rest", "resident_blocks", "window", "prefetch", "reshard_after_forward"):
        value = getattr(placement, key)
        if value != getattr(default, key):
            shown = getattr(value, "value", value)
            yield f"placement.{name}.{key}={str(shown).lower() if isinstance(shown, bool) else shown}"


def nearest(found: Found) -> tuple[float, ...]:
    """The fewest components placed otherwise, then the quickest."""
    return (found.changed, *quickest(found))


def quickest(found: Found) -> tuple[float, ...]:
    """Of those that are as good as alike, the one that has the fewest words."""
    return (float(f"{found.seconds:.2g}"), len(found.words()), found.seconds)


def search(
    model: Model,
    workload: Workload,
    machine: Machine,
    rates: Rates,
    *,
    shard: int,
    group: int = 1,
    now: Mapping[str, PlacementConfig] | None = None,
    by_change: bool = False,
    fixed: Iterable[str] = (),
    roughly: bool = False,
) -> list[Found]:
    """Those that fit, the best first; none where nothing does. `now`: how the components are placed, which counts as no
    change; `by_change`: few changes come before seconds; `fixed`: those that have to stay so; `roughly`: a
    good one is enough."""
    now, fixed = now or {}, set(fixed)

    def ones(sizes: Sizes) -> Lots:
        kinds = [] if sizes.name in fixed else list(options(sizes.name, len(sizes.blocks), model, shard))
        kinds += [now[sizes.name]] if sizes.name in now else []
        parts = [part_of(sizes, kind, workload, shard) for kind in kinds]
        rows = np.array([_row(part, now, machine, rates, group) for part in parts])
        return Lots(rows, [(part,) for part in parts]).chosen(unbeaten(rows))

    stages = [[ones(sizes) for sizes in stage] for _, stage in groupby(model.sizes, key=lambda sizes: sizes.stage)]
    turns = (group - 1) * max((workload.of(sizes.name).held for sizes in model.sizes), default=0)
    found: list[Found] = []
    for most in (_FEW, _MOST):
        best = (found[0].changed, found[0].seconds) if found else None
        found += _laid(stages, Limits(machine, turns, most, by_change, best), group)
        found.sort(key=nearest if by_change else quickest)
        if roughly and found:
            break
    return found


def _laid(stages: Sequence[Sequence[Lots]], limits: Limits, group: int) -> list[Found]:
    lots, left = empty(), least(stages)
    for stage, after in zip(stages, left, strict=True):
        for ones, rest in zip(stage, after, strict=True):
            lots = joined(lots, ones, rest, limits)
        lots = closed(lots, after[-1])
    return [
        Found(parts, float(row[SECONDS]), int(row[CHANGED]))
        for row, parts in zip(lots.rows, lots.parts, strict=True)
        if not shortages(needs(parts, limits.machine, group), limits.machine)
    ]


def options(name: str, num_blocks: int, model: Model, shard: int) -> Iterator[PlacementConfig]:
    """What is worth trying for a component."""
    yield PlacementConfig()
    if name in model.whole:
        return
    residents = sorted({0, *(num_blocks * step // _GRID for step in range(_GRID))})
    rests = [Rest.host] if name in model.not_on_disk else [Rest.host, Rest.disk]
    for rest in rests:
        for window in (1, 2, 4, "all"):
            if window == "all" or window == 2 or num_blocks > int(window):
                for resident in residents if window in (1, 2) else (0,):
                    yield PlacementConfig(rest=rest, window=window, resident_blocks=resident)
    if shard > 1:
        for rest in (Rest.device, Rest.host):
            for resident in residents:
                yield PlacementConfig(share=Share.shard, rest=rest, resident_blocks=resident)
            yield PlacementConfig(share=Share.shard, rest=rest, prefetch=0)
        if Rest.disk in rests:
            yield PlacementConfig(share=Share.shard, rest=Rest.disk)


def _row(part: Part, now: Mapping[str, PlacementConfig], machine: Machine, rates: Rates, group: int) -> list[float]:
    """In the order of a lot's columns."""
    placed = part.placed
    call = placed.gathered + part.work.activations
    host = placed.shared + machine.gpus * placed.slices
    changed = now.get(part.name, part.placement) != part.placement
    return [placed.at_rest, 0, placed.in_stage, call, host, request_seconds([part], rates, machine, group), changed]
