"""Loads a component and places it: whole on the device, its slice on each rank, or where its blocks wait."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

import offload
import sharding
from runner.components.component import METHODS
from runner.components.skeleton import dtype_plan, skeleton, stored_name
from runner.config import KNOBS, MeshConfig, PlacementConfig, Rest, RunConfig, Share
from runner.errors import UserError
from runner.world import World, has_collectives
from weights.agreement import Group, group_of, node_group, size_of
from weights.checkpoint import CheckpointError, KeysDiffer

T = TypeVar("T")


@dataclass(frozen=True)
class Loading:
    """How a component's weights came in: `how` in words, and on this rank the bytes read and the seconds."""

    how: str
    bytes_read: int
    seconds: float


@dataclass(frozen=True)
class Groups:
    """Who shares weights with whom: the mesh of sharded components, for messages between those that hold one copy of
    them, and the ranks that map one node's host memory. `engine` brings the blocks of all offloaded components."""

    mesh: DeviceMesh | None = None
    in_step: Group = None
    node: Group = None
    engine: offload.CopyEngine | None = None


def placement_of(name: str, config: RunConfig) -> PlacementConfig:
    """The placement configured for a component: its own, or the default one."""
    return config.placement.get(name, config.placement.get("default", PlacementConfig()))


def check_placement(name: str, placement: PlacementConfig) -> None:
    """Raises UserError for a combination that does not exist, and for an option that this placement does not have."""
    kind = (placement.share.value, placement.rest.value)
    shown = f"placement.{name}: share={kind[0]}, rest={kind[1]}"
    if kind not in KNOBS:
        raise UserError(f"{shown}: sharded weights wait on the device or the host; use rest=host, or share=replicate")
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
    offloaded = [p for p in placements if p.share is Share.replicate and p.rest is not Rest.device]
    on_host = any(placement.rest is Rest.host for placement in offloaded)
    return Groups(
        mesh if sharded else None,
        _in_step(mesh, world) if mesh is not None and sharded else None,
        node_group() if on_host and world.size > 1 else None,
        offload.engine_for(world.device) if offloaded else None,
    )


def _in_step(mesh: DeviceMesh, world: World) -> Group:
    """The ranks that hold one copy, consecutive ones as `build_mesh` makes them."""
    size = mesh.shape[-1]
    if size == world.size:
        return world.control
    return group_of([range(first, first + size) for first in range(0, world.size, size)])


def _mesh(mesh: MeshConfig, world: World) -> DeviceMesh:
    """The mesh of all ranks; raises UserError with a pair that fits where shard x replicate does not."""
    replicate = mesh.replicate
    if replicate is None:
        replicate = world.size // mesh.shard if mesh.shard and world.size % mesh.shard == 0 else 1
    try:
        return sharding.build_mesh(world.device.type, shard=mesh.shard, replicate=replicate)
    except ValueError as error:
        raise UserError(str(error)) from error


def load_component(
    cls: Any, folder: Path, dtype: torch.dtype, placement: PlacementConfig, world: World, groups: Groups
) -> tuple[nn.Module, Loading]:
    """The component, loaded and placed. Collective; raises UserError on all ranks where any of them cannot."""
    start = perf_counter()
    if placement.share is Share.shard:
        module, how, bytes_read = _load_sharded(cls, folder, dtype, placement, world, groups)
    elif placement.rest is not Rest.device:
        module, how, bytes_read = _load_offloaded(cls, folder, dtype, placement, world, groups)
    else:
        module = world.agreed(lambda: load_whole(cls, folder, dtype)).to(world.device)
        how, bytes_read = "whole, by its library", _stored_bytes(folder)
    return module, Loading(how, bytes_read, perf_counter() - start)


def load_whole(cls: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """The component in allocator-aligned host memory; every weight accounted for.

    Loaded weights are views of the mapped file at odd offsets, and CPU kernels pick their instructions by alignment,
    which moves the last bit. A copy per tensor gives the same bits in every placement.
    """
    module, info = from_pretrained(cls, folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, info.get(problem, ()))):
            listed = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
            raise UserError(f"{folder}: {problem.replace('_', ' ')} in the weights: {listed}")
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()
    return module.eval()


def from_pretrained(cls: Any, folder: Path, **kwargs: Any) -> Any:
    try:
        return cls.from_pretrained(folder, local_files_only=True, **kwargs)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"cannot load {folder}: {error}") from error


def _load_sharded(
    cls: Any, folder: Path, dtype: torch.dtype, placement: PlacementConfig, world: World, groups: Groups
) -> tuple[nn.Module, str, int]:
    """Each rank reads its slices only, unless the stored keys are not the module's own: then its library, which knows
    what to make of them, loads the component whole on every rank, and it is sharded right after."""
    assert groups.mesh is not None
    to_host = placement.rest is Rest.host
    shard = partial(
        sharding.shard,
        mesh=groups.mesh,
        reshard_after_forward=placement.reshard_after_forward,
        prefetch=placement.prefetch,
        resident_blocks=placement.resident_blocks,
        offload_to_host=to_host,
        forward_methods=METHODS,
    )
    module = world.agreed(lambda: _placed(folder, lambda: shard(empty(cls, folder, dtype))))
    try:
        report = sharding.load_sharded(
            module,
            folder,
            device=world.device,
            offload_to_host=to_host,
            rename=stored_name(module),
            group=world.control,
        )
        how, bytes_read = "each rank its slices", report.bytes_read
    except KeysDiffer as difference:
        module = world.agreed(lambda: _placed(folder, lambda: shard(load_whole(cls, folder, dtype))))
        how, bytes_read = f"whole, by its library, then sharded: {difference}", _stored_bytes(folder)
    except CheckpointError as error:  # the same on all ranks
        raise UserError(str(error)) from error
    sharding.prime(module)
    return module, how, bytes_read


def _load_offloaded(
    cls: Any, folder: Path, dtype: torch.dtype, placement: PlacementConfig, world: World, groups: Groups
) -> tuple[nn.Module, str, int]:
    """The weights go from the files to where they rest; only resident blocks come to the device now."""
    module = world.agreed(lambda: empty(cls, folder, dtype))
    entry_points = ("forward", *METHODS)
    units, aliases = offload.plan_units(module, entry_points), offload.find_aliases(module)
    open_files = partial(offload.DiskStore, folder, units, aliases=aliases, rename=stored_name(module))

    def by_library() -> dict[str, torch.Tensor]:
        return dict(load_whole(cls, folder, dtype).state_dict())

    def filled() -> tuple[offload.Store, str]:
        on_host: dict[str, Any] = {"group": groups.node, "device": world.device, "component": folder.name}
        try:
            if placement.rest is Rest.disk:
                return open_files(), "block by block, whenever a block is wanted"
            return offload.HostStore.from_files(open_files, **on_host), "once a node, each rank its share"
        except KeysDiffer as difference:
            if placement.rest is Rest.disk:
                raise UserError(f"placement.{folder.name}: rest=disk reads the files as they are, but {difference}; "
                                "use rest=host") from difference  # fmt: skip
            store = offload.HostStore.from_tensors(units, by_library, **on_host)
            return store, f"whole, by its library on one rank a node: {difference}"

    store, how = world.agreed(lambda: _placed(folder, filled))
    place = partial(
        offload.offload, module, store, device=world.device, engine=groups.engine, entry_points=entry_points
    )
    window: Any = placement.window
    world.agreed(lambda: _placed(folder, lambda: place(window=window, resident_blocks=placement.resident_blocks)))
    return module, how, 0 if placement.rest is Rest.disk else _stored_bytes(folder) // size_of(groups.node)


def empty(cls: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """The component without weights, each with the dtype it is to have."""
    module = skeleton(cls, folder, dtype)
    sharding.set_dtype(module, dtype_plan(module, dtype))
    return module


def _placed(folder: Path, place: Callable[[], T]) -> T:
    """What placing refuses is the user's to change: too many resident blocks, too little memory, a damaged file."""
    try:
        return place()
    except KeysDiffer:
        raise
    except CheckpointError as error:
        raise UserError(str(error)) from error
    except (ValueError, offload.StoreError) as error:
        raise error if isinstance(error, UserError) else UserError(f"placement.{folder.name}: {error}") from error


def _stored_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
