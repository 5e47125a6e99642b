"""The placements of all components together that serve best within the memory.

[Note: fronts] Each component has some tens of placements, and their product is beyond counting. But the components meet
only in sums (what rests on the device and on the host, the seconds) and in one maximum (the stage that takes most). So
they are laid together one after the other, and of each lot only those stay that no other one beats in every respect.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from runner.config import PlacementConfig, Rest, Share
from runner.plan.machine import Machine, Rates
from runner.plan.model import Model, part_of
from runner.plan.needs import Part, needs, shortages
from runner.plan.seconds import request_seconds
from runner.plan.work import Workload

_MOST = 300  # of a front; more differ by little
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


@dataclass(frozen=True)
class _Lot:
    """Some components, placed. Bytes of a rank: `rest`; `extra` in the stage that takes most so far; in the one that is
    being put together, `up` while it runs and `call` in a call. `host`: of a node."""

    parts: tuple[Part, ...] = ()
    rest: int = 0
    extra: int = 0
    up: int = 0
    call: int = 0
    host: int = 0
    seconds: float = 0.0
    changed: int = 0

    def beats(self, other: "_Lot") -> bool:
        return (
            self.rest <= other.rest
            and self.extra <= other.extra
            and self.up <= other.up
            and self.call <= other.call
            and self.host <= other.host
            and self.seconds <= other.seconds
            and self.changed <= other.changed
        )

    def joined(self, one: "_Lot") -> "_Lot":
        """With a component more, in the same stage: what they bring up adds up, their calls come one after another."""
        return _Lot(
            self.parts + one.parts,
            self.rest + one.rest,
            self.extra,
            self.up + one.up,
            max(self.call, one.call),
            self.host + one.host,
            self.seconds + one.seconds,
            self.changed + one.changed,
        )

    def closed(self) -> "_Lot":
        """The stage ends."""
        return replace(self, extra=max(self.extra, self.up + self.call), up=0, call=0)

    @property
    def device(self) -> int:
        return self.rest + max(self.extra, self.up + self.call)


Key = Callable[[_Lot], tuple[float, ...]]


def nearest(lot: _Lot) -> tuple[float, ...]:
    """The fewest components placed otherwise, then the quickest."""
    return (lot.changed, *quickest(lot))


def quickest(lot: _Lot) -> tuple[float, ...]:
    """Of those that are as good as alike, the one that has the fewest words."""
    words = sum(1 for part in lot.parts for _ in words_of(part.name, part.placement))
    return (float(f"{lot.seconds:.2g}"), words, lot.seconds)


def search(
    model: Model,
    workload: Workload,
    machine: Machine,
    rates: Rates,
    *,
    shard: int,
    group: int = 1,
    now: Mapping[str, PlacementConfig] | None = None,
    key: Key = quickest,
    fixed: Iterable[str] = (),
) -> list[Found]:
    """Those that fit, the best first; none where nothing does. `now`: how the components are placed, which counts as no
    change; `fixed`: those that have to stay so."""
    now, fixed = now or {}, set(fixed)
    turns = (group - 1) * max((workload.of(sizes.name).held for sizes in model.sizes), default=0)
    front = [_Lot()]
    for _, stage in groupby(model.sizes, key=lambda sizes: sizes.stage):
        for sizes in stage:
            kinds = [] if sizes.name in fixed else list(options(sizes.name, len(sizes.blocks), model, shard))
            kinds += [now[sizes.name]] if sizes.name in now else []
            parts = [part_of(sizes, kind, workload, shard) for kind in kinds]
            ones = [_lot(part, now, machine, rates, group) for part in parts]
            front = _pruned((lot.joined(one) for lot in front for one in ones), machine, turns)
        front = [lot.closed() for lot in front]
    complete = [lot for lot in front if not shortages(needs(lot.parts, machine, group), machine)]
    return [Found(lot.parts, lot.seconds, lot.changed) for lot in sorted(complete, key=key)]


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


def _lot(part: Part, now: Mapping[str, PlacementConfig], machine: Machine, rates: Rates, group: int) -> _Lot:
    placed = part.placed
    return _Lot(
        (part,),
        rest=placed.at_rest,
        up=placed.in_stage,
        call=placed.gathered + part.work.activations,
        host=placed.shared + machine.gpus * placed.slices,
        seconds=request_seconds([part], rates, machine, group),
        changed=int(now.get(part.name, part.placement) != part.placement),
    )


def _pruned(lots: Iterable[_Lot], machine: Machine, turns: int) -> list[_Lot]:
    """Those that fit so far, and that no other one beats; see [Note: fronts]."""
    own = machine.gpus * (machine.staging + machine.process)
    front: list[_Lot] = []
    for lot in sorted(lots, key=lambda lot: (lot.seconds, lot.device, lot.host, lot.changed)):
        device = lot.device + turns + machine.reserved
        host = lot.host + own + (machine.gpus * device if machine.is_host else 0)
        fits = host <= machine.host_memory and (machine.is_host or device <= machine.device_memory)
        if fits and not any(other.beats(lot) for other in front):
            front.append(lot)
    if len(front) <= _MOST:
        return front
    by_memory = sorted(front, key=lambda lot: lot.device)
    every = [by_memory[i * (len(by_memory) - 1) // (_MOST - 1)] for i in range(_MOST)]
    return list({id(lot): lot for lot in (front[0], *every)}.values())
