"""A plan: a job's model on machines, in the placement that is configured, or in the best one."""

from dataclasses import dataclass
from typing import Any

from runner.config import RunConfig
from runner.plan.machine import Machine, Rates
from runner.plan.model import Model, parts_of, placements_of, shard_of
from runner.plan.needs import Needs, Part, needs, shortages
from runner.plan.search import Found, search
from runner.plan.seconds import group_for
from runner.plan.work import Workload


@dataclass(frozen=True)
class Plan:
    """`short`: what does not fit, in words. `near`: then the nearest placement that does, if there is one."""

    model: Model
    workload: Workload
    machine: Machine
    rates: Rates
    parts: tuple[Part, ...]
    group: int
    needed: Needs
    short: tuple[str, ...]
    near: Found | None

    @property
    def fits(self) -> bool:
        return not self.short

    def figures(self) -> dict[str, Any]:
        """For run.json. Bytes: of each rank on its device, at the peak and while each component is called; of its own
        on the host, beside Python and the libraries; of what the ranks of a node share there."""
        own = sum(part.placed.slices for part in self.parts) + self.machine.staging
        return {
            "device_bytes": self.needed.device,
            "host_bytes": own + (self.needed.device if self.machine.is_host else 0),
            "shared_host_bytes": sum(part.placed.shared for part in self.parts),
            "at": self.needed.at,
            "by_component": self.needed.by_part,
            "counts": "weights" if self.workload.unknown else "weights and activations",
        }

    def fix(self) -> str:
        """What would fit, as words of the command line."""
        if self.near is None:
            return "no placement of this model fits: use more GPUs or nodes, or larger ones"
        now = {part.name: part.placement for part in self.parts}
        changed = [part for part in self.near.parts if part.placement != now[part.name]]
        return " ".join(word for part in changed for word in _told(part, now[part.name])) + " fits"


def _told(part: Part, now: object) -> list[str]:
    """Every key that differs from how it is placed now."""
    found = []
    for key, value in vars(part.placement).items():
        if value != getattr(now, key):
            shown = getattr(value, "value", value)
            found.append(f"placement.{part.name}.{key}={str(shown).lower() if isinstance(shown, bool) else shown}")
    return found


def planned(model: Model, config: RunConfig, workload: Workload, machine: Machine, rates: Rates) -> Plan:
    """As configured. Raises UserError for a mesh or a placement that cannot be."""
    shard = shard_of(config.mesh, machine.ranks)
    placements = placements_of(model, config)
    parts = tuple(parts_of(model, placements, workload, shard))
    group = group_for(config.job.group, parts, rates, machine)
    while config.job.group == "auto" and group > 1 and shortages(needs(parts, machine, group), machine):
        group -= 1  # as many as the memory holds
    needed = needs(parts, machine, group)
    short = tuple(shortages(needed, machine))
    near = None
    if short:
        found = search(model, workload, machine, rates, shard=shard, group=group, now=placements, by_change=True)
        near = found[0] if found else None
    return Plan(model, workload, machine, rates, parts, group, needed, short, near)
