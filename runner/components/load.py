"""Loads a component and places it: whole on the device, its slice on each rank, or where its blocks wait."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import torch
from diffusers import ConfigMixin
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

import offload
import sharding
from runner.components.changing import scheduler_of, set_on
from runner.components.compiled import compile_blocks
from runner.components.component import METHODS
from runner.components.context import Context, has_plan
from runner.components.fits import require_room_for_slices, require_room_whole
from runner.components.quantised import only_whole
from runner.components.reading import reading
from runner.components.resident import fill
from runner.components.single_file import from_single_file, single_file_dtypes
from runner.components.skeleton import checkpoint_of, dtype_plan, skeleton, unused_keys
from runner.components.source import Source
from runner.config import DYNAMIC, KNOBS, MeshConfig, PlacementConfig, Rest, RunConfig, Share
from runner.errors import UserError
from runner.team import PATIENCE, check_shard
from runner.world import World, has_collectives
from weights.agreement import Group, gather_int, group_of, node_group, size_of
from weights.checkpoint import KeysDiffer, few
from weights.files import FileError
from weights.room import NoRoom, require_room

T = TypeVar("T")
_WHOLE = "whole, by its library"


@dataclass(frozen=True)
class Loading:
    """How a component's weights came in: `how` in words, and on this rank the bytes read and the seconds."""

    how: str
    bytes_read: int
    seconds: float


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
    module, unused = world.agreed(lambda: _load_noted(source, dtype))
    if any(tensor.device != world.device for tensor in (*module.parameters(), *module.buffers())):
        module = module.to(world.device)  # quantised ones are there already, and some refuse to be moved
    return module, _noted(f"{_WHOLE}: {difference}", unused), source.stored_bytes


def load_whole(source: Source, dtype: torch.dtype) -> nn.Module:
    """The component in allocator-aligned host memory, with every weight from its files.

    Loaded weights are views of the mapped file at odd offsets, and CPU kernels pick their instructions by alignment,
    which moves the last bit. A copy per tensor gives the same bits in every placement.
    """
    return _load_noted(source, dtype)[0]


def _load_noted(source: Source, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    """`load_whole`, and the stored keys that its library warns of because it has no use for them."""
    if source.file is not None:
        module = from_single_file(source, dtype)
        _align(module)
        return _compiled_where_asked(module, source), []
    module, info = from_pretrained(source, dtype=dtype, use_safetensors=True, output_loading_info=True)
    for problem in ("missing_keys", "mismatched_keys"):
        if keys := sorted(map(str, info.get(problem, ()))):
            raise UserError(f"{source.folder}: {problem.replace('_', ' ')} in the weights: {few(keys)}")
    if getattr(module, "hf_quantizer", None) is None:  # what a quantised weight holds is its library's to move
        _align(module)
    unused = sorted(map(str, info.get("unexpected_keys", ())))
    return _compiled_where_asked(module.eval(), source), unused


def _compiled_where_asked(module: nn.Module, source: Source) -> nn.Module:
    how = source.changes.compile
    return compile_blocks(module, is_dynamic=how == DYNAMIC) if how else module


def move_whole(module: nn.Module, device: torch.device) -> None:
    """A module that something else made: on the device, in aligned memory."""
    module.to(device)
    _align(module)


def _align(module: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()


def _noted(how: str, unused: Sequence[str]) -> str:
    """Whoever looks at how a component was loaded is told what was not."""
    return f"{how}; stored, but of no use to it: {few(unused)}" if unused else how


def from_pretrained(source: Source, **kwargs: Any) -> Any:
    """Raises UserError where the library cannot.

    Code of the directory is never run: transformers, which takes the argument in all its classes, would otherwise ask
    on standard input (and a batch job may have a `yes |` there). diffusers runs none in its models and schedulers.
    """
    if not issubclass(source.cls, ConfigMixin):
        kwargs["trust_remote_code"] = False
    if source.variant is not None:
        kwargs["variant"] = source.variant
    cls, changes = source.changes.exchanged or source.cls, source.changes
    with reading(f"{source.folder} cannot be loaded as a {cls.__name__}"):
        found = cls.from_pretrained(source.folder, local_files_only=True, **kwargs)
        has_changed = changes.settings or changes.exchanged
        return scheduler_of(found, source.cls, changes.settings) if has_changed else found


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
        module, unused = world.agreed(lambda: _load_noted(source, dtype))
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
        loaded, unused[:] = _load_noted(source, dtype)
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
    module = _compiled_where_asked(skeleton(source, dtype), source)
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
