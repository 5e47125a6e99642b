"""Who shares weights with whom, as the placements of a pipeline's components ask for it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed.device_mesh import DeviceMesh

import offload
import sharding
from runner.config import KNOBS, MeshConfig, PlacementConfig, Rest, RunConfig, Share
from runner.errors import UserError
from runner.team import PATIENCE, check_shard
from runner.world import World, has_collectives
from weights.agreement import Group, group_of, node_group, size_of
from weights.room import NoRoom, require_room


@dataclass(frozen=True)
class Groups:
    """Who shares weights with whom: the mesh of sharded components, for messages between those that hold one copy of
    them or make one request (`in_step`), the ranks that map one node's host memory, and for what those of one copy read
    together. `engine` brings the blocks of all offloaded components, and those of a node take `staging_bytes` of host
    memory for it. `context`: the ranks that share out the tokens of calls."""

    mesh: DeviceMesh | None = None
    in_step: Group = None
    node: Group = None
    engine: offload.CopyEngine | None = None
    staging_bytes: int = 0
    readers: Group = None
    context: DeviceMesh | None = None


def placement_of(name: str, config: RunConfig) -> PlacementConfig:
    """The placement configured for a component: its own, or the default one."""
    return config.placement.get(name, config.placement.get("default", PlacementConfig()))


def check_placement(name: str, placement: PlacementConfig) -> None:
    """Raises UserError for a combination that does not exist, and for an option that this placement does not have."""
    kind = (placement.share.value, placement.rest.value)
    shown = f"placement.{name}: share={kind[0]}, rest={kind[1]}"
    default = asdict(PlacementConfig())
    for option, value in asdict(placement).items():
        if option not in ("share", "rest", *KNOBS[kind]) and value != default[option]:
            owners = " or ".join(f"share={s} rest={r}" for (s, r), knobs in KNOBS.items() if option in knobs)
            raise UserError(f"{shown} has no {option} (={value}); {owners or 'no placement'} has")


def build_groups(config: RunConfig, modules: Sequence[str], world: World) -> Groups:
    """What the placements of these components need. Collective. A mesh that is configured is checked in any case."""
    placements = [placement_of(name, config) for name in modules]
    sharded = any(placement.share is Share.shard for placement in placements)
    if sharded and not has_collectives(world.device):
        raise UserError(f"share=shard: torch has no collectives on {world.device.type}; use share=replicate")
    configured = config.mesh.shard is not None or config.mesh.replicate is not None
    mesh = world.agreed(lambda: _mesh(config.mesh, world)) if sharded or configured else None
    if mesh is not None and sharded:
        check_shard(world.size, mesh.shape[-1], world.team)
    offloaded = [p for p in placements if _is_offloaded(p)]
    node = node_group() if world.size > 1 else None
    engine = offload.engine_for(world.device) if offloaded else None
    return Groups(
        mesh if sharded else None,
        _in_step(mesh.shape[-1] if mesh is not None and sharded else 1, world),
        node,
        engine,
        world.agreed(lambda: _room_to_stage(engine, size_of(node))) if engine else 0,
        _read_together(mesh, world) if any(_is_read_together(p) for p in placements) else None,
        world.team.context_mesh,
    )


def _is_offloaded(placement: PlacementConfig) -> bool:
    """By us; FSDP keeps slices on the host by itself."""
    return placement.rest is Rest.disk or (placement.share is Share.replicate and placement.rest is Rest.host)


def _is_read_together(placement: PlacementConfig) -> bool:
    return placement.share is Share.shard and placement.rest is Rest.disk


def _read_together(mesh: DeviceMesh | None, world: World) -> Group:
    """A group for nothing else: what is read is exchanged in the thread that copies, beside what the ranks tell each
    other. How long one waits for the other is the watch's to judge."""
    if mesh is None or mesh.shape[-1] == 1:
        return None
    size = mesh.shape[-1]
    return group_of([range(first, first + size) for first in range(0, world.size, size)], timedelta(days=30))


def _room_to_stage(engine: offload.CopyEngine, num_ranks: int) -> int:
    """What the engines of a node's ranks take of its memory. Raises UserError where it is not there."""
    needed = num_ranks * engine.staging_bytes
    try:
        require_room(needed, f"placement: the staging of what is offloaded, on {num_ranks} rank(s),", {})
    except NoRoom as error:
        raise UserError(str(error)) from error
    return needed


def _in_step(shard: int, world: World) -> Group:
    """The ranks that hold one copy, and all of each team that has any of them: the larger of the two, since both are
    consecutive ranks (as `build_mesh` makes them), and one is a multiple of the other. None where each rank is alone.

    Other groups, which share nothing with this one, neither wait for it nor leave with it.
    """
    size = max(shard, world.team.size)
    if size == world.team.size:
        return world.team.control
    if size == world.size:
        return world.control
    return group_of([range(first, first + size) for first in range(0, world.size, size)], PATIENCE)


def _mesh(mesh: MeshConfig, world: World) -> DeviceMesh:
    """The mesh of all ranks; raises UserError with a pair that fits where shard x replicate does not."""
    replicate = mesh.replicate
    if replicate is None:
        replicate = world.size // mesh.shard if mesh.shard and world.size % mesh.shard == 0 else 1
    try:
        return sharding.build_mesh(world.device.type, shard=mesh.shard, replicate=replicate)
    except ValueError as error:
        raise UserError(str(error)) from error
