"""Loads a component and places it: whole on the device, its slice on each rank, or where its blocks wait."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

import offload
import sharding
from runner.components.changing import set_on
from runner.components.compiled import compile_blocks
from runner.components.component import METHODS
from runner.components.context import Context, has_plan
from runner.components.fits import require_room_for_slices, require_room_whole
from runner.components.groups import Groups
from runner.components.quantised import only_whole
from runner.components.resident import fill
from runner.components.single_file import single_file_dtypes
from runner.components.skeleton import checkpoint_of, dtype_plan, skeleton, unused_keys
from runner.components.source import Source
from runner.components.whole import load_noted
from runner.config import PlacementConfig, Rest, Share
from runner.errors import UserError
from runner.world import World
from weights.agreement import gather_int, size_of
from weights.checkpoint import KeysDiffer, few
from weights.files import FileError

T = TypeVar("T")
_WHOLE = "whole, by its library"


@dataclass(frozen=True)
class Loading:
    """How a component's weights came in: `how` in words, and on this rank the bytes read and the seconds."""

    how: str
    bytes_read: int
    seconds: float


def load_component(
    source: Source, dtype: torch.dtype, placement: PlacementConfig, world: World, groups: Groups
) -> tuple[nn.Module, Loading]:
    """The component, loaded and placed. Collective; raises UserError on all ranks where any of them cannot."""
    start = perf_counter()
    dtype = getattr(torch, source.changes.dtype or "", dtype)
    if placement.share is Share.shard and placement.rest is not Rest.disk:
        module, how, bytes_read = _load_sharded(source, dtype, placement, world, groups)
    elif placement.rest is not Rest.device:
        module, how, bytes_read = _load_offloaded(source, dtype, placement, world, groups)
    else:
        module, how, bytes_read = _load_resident(source, dtype, world, groups)
    set_on(module, source.changes)
    if groups.context is not None and has_plan(source.cls):
        _share_out_tokens(source, module, groups.context)
    return module, Loading(how, bytes_read, perf_counter() - start)


def _share_out_tokens(source: Source, module: nn.Module, ranks: DeviceMesh) -> None:
    """What the files could not tell: see `check_context`. The same on all ranks."""
    try:
        Context(module, ranks)
    except ValueError as error:
        raise UserError(f"mesh.context={ranks.size()}: {source.name} ({source.cls.__name__}): {error}") from error


def _load_resident(source: Source, dtype: torch.dtype, world: World, groups: Groups) -> tuple[nn.Module, str, int]:
    """Each weight goes from the files to where it stays, unless only its library can make it of what is stored."""
    difference: str | None = world.agreed(lambda: only_whole(source.folder / "config.json"))
    if difference is None:
        module, unused = world.agreed(lambda: _placed(source.name, lambda: _empty_noted(source, dtype)))
        ranks = size_of(groups.node)
        fits = partial(require_room_whole, module, world.device, ranks, source.name)
        world.agreed(lambda: _placed(source.name, fits))
        filled = partial(fill, module, device=world.device, keep_pages=ranks > 1)
        try:
            world.agreed(lambda: _placed(source.name, lambda: filled(checkpoint_of(module, source))))
            return module, _noted("weight by weight", unused), source.stored_bytes
        except KeysDiffer as error:
            difference = str(error)
    module, unused = world.agreed(lambda: load_noted(source, dtype))
    if any(tensor.device != world.device for tensor in (*module.parameters(), *module.buffers())):
        module = module.to(world.device)  # quantised ones are there already, and some refuse to be moved
    return module, _noted(f"{_WHOLE}: {difference}", unused), source.stored_bytes


def _noted(how: str, unused: Sequence[str]) -> str:
    """Whoever looks at how a component was loaded is told what was not."""
    return f"{how}; stored, but of no use to it: {few(unused)}" if unused else how


def _load_sharded(
    source: Source, dtype: torch.dtype, placement: PlacementConfig, world: World, groups: Groups
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
    module, unused = world.agreed(lambda: _placed(source.name, lambda: _empty_noted(source, dtype)))
    module = world.agreed(lambda: _placed(source.name, lambda: shard(module)))
    mine = sharding.bytes_per_rank(module)
    on_node = sum(gather_int(mine, groups.node))
    fits = partial(require_room_for_slices, mine, on_node, world.device, source.name, on_host=to_host)
    world.agreed(lambda: _placed(source.name, fits))
    try:
        report = sharding.load_sharded(
            module,
            checkpoint_of(module, source),
            device=world.device,
            offload_to_host=to_host,
            group=world.control,
        )
        how, bytes_read = "each rank its slices", report.bytes_read
    except KeysDiffer as difference:
        module, unused = world.agreed(lambda: load_noted(source, dtype))
        module = world.agreed(lambda: _placed(source.name, lambda: shard(module)))
        how, bytes_read = f"{_WHOLE}, then sharded: {difference}", source.stored_bytes
    except FileError as error:  # the same on all ranks
        raise UserError(str(error)) from error
    sharding.prime(module)
    return module, _noted(how, unused), bytes_read


def _load_offloaded(
    source: Source, dtype: torch.dtype, placement: PlacementConfig, world: World, groups: Groups
) -> tuple[nn.Module, str, int]:
    """The weights go from the files to where they rest; only resident blocks come to the device now."""
    module, unused = world.agreed(lambda: _placed(source.name, lambda: _empty_noted(source, dtype)))
    entry_points = ("forward", *METHODS)
    units, aliases = offload.plan_units(module, entry_points), offload.find_aliases(module)
    open_files = partial(offload.DiskStore, checkpoint_of(module, source), units, aliases=aliases)

    def by_library() -> dict[str, torch.Tensor]:
        loaded, unused[:] = load_noted(source, dtype)
        return dict(loaded.state_dict())

    def filled() -> tuple[offload.Store, str]:
        on_host: dict[str, Any] = {
            "group": groups.node,
            "device": world.device,
            "component": source.name,
            "staging_bytes": groups.staging_bytes,
        }
        try:
            if placement.share is Share.shard and groups.readers is not None:
                how = "block by block, whenever a block is wanted, each rank its part"
                return offload.SharedDiskStore(open_files(), groups.readers), how
            if placement.rest is Rest.disk:
                return open_files(), "block by block, whenever a block is wanted"
            return offload.HostStore.from_files(open_files, **on_host), "once a node, each rank its share"
        except KeysDiffer as difference:
            if placement.rest is Rest.disk:
                raise UserError(f"placement.{source.name}: rest=disk reads the files as they are, but {difference}; "
                                "use rest=host") from difference  # fmt: skip
            store = offload.HostStore.from_tensors(units, by_library, **on_host)
            return store, f"{_WHOLE} on one rank a node: {difference}"

    store, how = world.agreed(lambda: _placed(source.name, filled))
    place = partial(
        offload.offload, module, store, device=world.device, engine=groups.engine, entry_points=entry_points
    )
    window: Any = placement.window
    world.agreed(lambda: _placed(source.name, lambda: place(window=window, resident_blocks=placement.resident_blocks)))
    bytes_read = 0 if placement.rest is Rest.disk else source.stored_bytes // size_of(groups.node)
    return module, _noted(how, unused), bytes_read


def empty(source: Source, dtype: torch.dtype) -> nn.Module:
    """The component without weights, each with the dtype it is to have."""
    module = compile_blocks(skeleton(source, dtype), source.changes.compile)
    plan = single_file_dtypes(module, dtype) if source.file else dtype_plan(module, dtype)
    sharding.set_dtype(module, plan)
    return module


def _empty_noted(source: Source, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    """`empty`, and the stored keys that its library warns of because it has no use for them."""
    module = empty(source, dtype)
    return module, unused_keys(module, source)


def _placed(name: str, place: Callable[[], T]) -> T:
    """What placing refuses is the user's to change: too many resident blocks, too little memory, a damaged file."""
    try:
        return place()
    except KeysDiffer:
        raise
    except FileError as error:
        raise UserError(str(error)) from error
    except (ValueError, offload.StoreError) as error:
        raise error if isinstance(error, UserError) else UserError(f"placement.{name}: {error}") from error
