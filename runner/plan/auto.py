"""`rest: auto`: the placement that the plan says, for the machines that a job has come to.

A placement moves no bits, so that none of this is part of the recipe. A run that goes on where one before stopped keeps
the placement of that, as long as it has as many ranks and it fits.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from runner.config import PlacementConfig, Rest, RunConfig, Share
from runner.errors import UserError
from runner.plan.best import GROUPS, why_of
from runner.plan.machine import Machine, Rates
from runner.plan.model import Model, placements_of, shard_of
from runner.plan.planning import planned
from runner.plan.search import Found, search, words_of
from runner.plan.work import Workload
from runner.team import Team, divides


@dataclass(frozen=True)
class Choice:
    """By component. `ranks`: for so many; `why` in words."""

    placement: Mapping[str, PlacementConfig]
    ranks: int
    why: str

    def __str__(self) -> str:
        words = [word for name, placement in self.placement.items() for word in words_of(name, placement)]
        return f"placement=auto: {' '.join(words) or 'all stays on the device'}: {self.why}"

    def to_json(self) -> dict[str, Any]:
        placed = {
            name: {key: getattr(value, "value", value) for key, value in vars(one).items()}
            for name, one in self.placement.items()
        }
        return {"placement": placed, "ranks": self.ranks, "why": self.why}


def is_asked(config: RunConfig, names: Iterable[str]) -> bool:
    return any(_is_open(placement) for placement in _placements(config, names).values())


def settled(config: RunConfig, choice: Choice | None) -> RunConfig:
    return config if choice is None else replace(config, placement={**config.placement, **choice.placement})


def chosen(
    model: Model,
    config: RunConfig,
    workload: Workload,
    machine: Machine,
    rates: Rates,
    *,
    team: Team,
    requests: int,
    earlier: Mapping[str, Any],
) -> Choice:
    """`requests`: of the job; `earlier`: the choice of the run before, as its run.json has it. Raises UserError where
    nothing fits."""
    placements = placements_of(model, config)
    free = [name for name, placement in placements.items() if _is_open(placement)]
    kept, note = _kept(earlier, free, model, config, workload, machine, rates)
    if kept is not None:
        return kept
    now = {name: placement for name, placement in placements.items() if name not in free}
    shard = shard_of(config.mesh, machine.ranks)
    shard = shard if divides(shard, team.size) else 1
    found, group = _quickest(
        lambda group: search(model, workload, machine, rates, shard=shard, group=group, now=now, fixed=now),
        [config.job.group] if isinstance(config.job.group, int) else [g for g in GROUPS if g * team.count <= requests],
    )
    if not found:
        raise UserError("placement=auto: no placement of this model fits: use more GPUs or nodes, or larger ones")
    best, *others = found
    placed = {part.name: part.placement for part in best.parts if part.name in free}
    why = f"{note}the quickest that fits: {why_of(best, rates, machine, group)}"
    second = next((other for other in others if other.words() != best.words()), None)
    if second is not None:
        slower = second.seconds / best.seconds - 1 if best.seconds else 0.0
        why += f"; next {' '.join(second.words()) or 'all on the device'}, {slower:.0%} slower"
    if workload.unknown:
        why += f"; what calls hold is not reckoned with: {workload.unknown}"
    return Choice(placed, machine.ranks, f"{why} (speeds {rates.source})")


def _quickest(find: Callable[[int], list[Found]], groups: list[int]) -> tuple[list[Found], int]:
    """What is found for the number of requests made together that serves best: the least one of those alike."""
    by_group = {group: found for group in groups or [1] if (found := find(group))}
    if not by_group:
        return [], 1
    group = min(by_group, key=lambda group: (float(f"{by_group[group][0].seconds:.2g}"), group))
    return by_group[group], group


def _kept(
    earlier: Mapping[str, Any],
    free: list[str],
    model: Model,
    config: RunConfig,
    workload: Workload,
    machine: Machine,
    rates: Rates,
) -> tuple[Choice | None, str]:
    """The choice of the run before, or why it is not kept."""
    before = _read(earlier)
    if before is None or set(before.placement) != set(free):
        return None, ""
    if before.ranks != machine.ranks:
        return None, f"not that of the run before, which had {before.ranks} rank(s); "
    plan = planned(model, settled(config, before), workload, machine, rates)
    if not plan.fits:
        return None, f"not that of the run before, since {'; '.join(plan.short)}; "
    return replace(before, why="as the run before"), ""


def _read(earlier: Mapping[str, Any]) -> Choice | None:
    """None where there was none, or its run.json is damaged."""
    try:
        placement = {
            str(name): PlacementConfig(**{**told, "share": Share(told["share"]), "rest": Rest(told["rest"])})
            for name, told in earlier["placement"].items()
        }
        return Choice(placement, int(earlier["ranks"]), str(earlier["why"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _placements(config: RunConfig, names: Iterable[str]) -> dict[str, PlacementConfig]:
    default = config.placement.get("default", PlacementConfig())
    return {name: config.placement.get(name, default) for name in names}


def _is_open(placement: PlacementConfig) -> bool:
    return placement.rest is Rest.auto
