"""What all components together take of each rank and each node, and what is too much."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from runner.components.look_ahead import Moves, look_ahead
from runner.config import PlacementConfig, Rest, Share
from runner.plan.machine import Machine, size
from runner.plan.placed import Placed
from runner.plan.sizes import Sizes
from runner.plan.work import Work


@dataclass(frozen=True)
class Part:
    """A component as it is planned. `shard`: the ranks that hold one copy, 1 where each has its own."""

    sizes: Sizes
    placement: PlacementConfig
    placed: Placed
    work: Work
    shard: int = 1

    @property
    def name(self) -> str:
        return self.sizes.name

    @property
    def is_offloaded(self) -> bool:
        """By us: FSDP keeps slices on the host by itself."""
        rest, share = self.placement.rest, self.placement.share
        return rest is Rest.disk or (rest is Rest.host and share is Share.replicate)

    @property
    def moves(self) -> Moves:
        """What `look_ahead` goes by. Other ranks take part by FSDP, or where each reads a part of the files."""
        is_sharded = self.placement.share is Share.shard and (self.shard > 1 or self.placement.rest is not Rest.disk)
        if not self.is_offloaded:
            return Moves(self.sizes.stage, 0, None, is_sharded)
        return Moves(self.sizes.stage, self.placed.in_stage, self.placed.ring, is_sharded)


@dataclass(frozen=True)
class Needs:
    """Bytes. `device`: of each rank at the peak, which is in a call of the component `at`; `host`: of each node, of
    them `page_locked`. `by_part`: the rank's peak while each component is called. `turns`: of the others of a group."""

    device: int
    at: str
    host: int
    page_locked: int
    by_part: dict[str, int]
    turns: int


def needs(parts: Sequence[Part], machine: Machine, group: int = 1) -> Needs:
    """Of `group` requests that a rank makes together. Everything that a stage has brought up is there until it ends."""
    at_rest = sum(part.placed.at_rest for part in parts)
    turns = (group - 1) * max((part.work.held for part in parts), default=0)
    by_part = {}
    for _, found in groupby(parts, key=lambda part: part.sizes.stage):
        stage = list(found)
        up = sum(part.placed.in_stage for part in stage)
        for part in stage:
            by_part[part.name] = at_rest + up + part.placed.gathered + part.work.activations + turns + machine.reserved
    for last, first in look_ahead([part.moves for part in parts]).items():
        by_part[parts[last].name] += parts[first].placed.ring
    at = max(by_part, key=lambda name: by_part[name], default="")
    device = by_part.get(at, machine.reserved)
    slices = machine.gpus * sum(part.placed.slices for part in parts)
    shared = sum(part.placed.shared for part in parts)
    staging = machine.gpus * machine.staging
    host = shared + slices + staging + machine.gpus * machine.process
    page_locked = 0 if machine.is_host else shared + slices + staging
    return Needs(device, at, host + (machine.gpus * device if machine.is_host else 0), page_locked, by_part, turns)


def shortages(needed: Needs, machine: Machine) -> list[str]:
    """What does not fit, in words; nothing where all does."""
    found = []
    if not machine.is_host and needed.device > machine.device_memory:
        found.append(
            f"each GPU needs {size(needed.device)} while {needed.at} is called, and has {size(machine.device_memory)}"
        )
    if needed.host > machine.host_memory:
        found.append(f"each node needs {size(needed.host)} of host memory, and has {size(machine.host_memory)}")
    return found
