"""A model as far as planning goes: the sizes of its components, and what each of them cannot do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from runner.components.changing import set_on
from runner.components.component import Component
from runner.components.directory import Directory
from runner.components.groups import placement_of
from runner.components.load import empty
from runner.components.quantised import only_whole
from runner.components.skeleton import checkpoint_of
from runner.components.source import Source
from runner.components.stages import in_order
from runner.config import MeshConfig, PlacementConfig, RunConfig, Share
from runner.errors import UserError
from runner.plan.needs import Part
from runner.plan.placed import placed
from runner.plan.sizes import Sizes, sizes_of
from runner.plan.work import Workload
from weights.checkpoint import KeysDiffer, match_keys
from weights.tied import tied_names


@dataclass(frozen=True)
class Model:
    """`whole`: components that only their library can load, so that they stay on the device; `not_on_disk`: those whose
    files do not hold their weights as they are. `notes` are for who reads the plan."""

    sizes: tuple[Sizes, ...]
    whole: frozenset[str] = frozenset()
    not_on_disk: frozenset[str] = frozenset()
    modules: Mapping[str, torch.nn.Module] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def model_of(directory: Directory, config: RunConfig) -> Model:
    """From configurations, and from the headers of weight files where they are there. Raises UserError."""
    default = getattr(torch, config.model.dtype.value)
    sources = {name: directory.sources[name] for name in directory.modules}
    modules = {
        name: empty(source, getattr(torch, source.changes.dtype or "", default)) for name, source in sources.items()
    }
    for name, source in sources.items():
        set_on(modules[name], source.changes)
    components = in_order(modules, getattr(directory.pipeline, "model_cpu_offload_seq", None))
    absent = [name for name, source in sources.items() if source.absent is not None]
    quantised = {name: why for name, source in sources.items() if (why := only_whole(source.folder / "config.json"))}
    notes = [f"sized from configurations alone: {', '.join(absent)}"] if absent else []
    notes += [f"{name}: sized as it is stored ({why})" for name, why in quantised.items()]
    return Model(
        tuple(
            _sizes(component, _stored(sources[component.name]), component.name in quantised) for component in components
        ),
        frozenset(quantised),
        frozenset(name for name, source in sources.items() if not _reads_as_stored(source, modules[name])),
        modules,
        tuple(notes),
    )


def _sizes(component: Component, stored: int, is_quantised: bool) -> Sizes:
    """What is quantised takes on the device what it takes in its files."""
    sizes = sizes_of(component, stored)
    return replace(sizes, resident=sizes.stored) if is_quantised else sizes


def _stored(source: Source) -> int:
    return source.stored_bytes if source.absent is None else 0


def _reads_as_stored(source: Source, module: torch.nn.Module) -> bool:
    """Whether each weight is in the files by a name of its own, as reading them again and again takes."""
    if source.absent is not None:
        return True
    try:
        match_keys(checkpoint_of(module, source), tied_names(module))
    except KeysDiffer:
        return False
    return True


def parts_of(model: Model, placements: Mapping[str, PlacementConfig], workload: Workload, shard: int) -> list[Part]:
    """Raises UserError for a placement that a component does not have room for in its blocks."""
    return [part_of(sizes, placements[sizes.name], workload, shard) for sizes in model.sizes]


def part_of(sizes: Sizes, placement: PlacementConfig, workload: Workload, shard: int) -> Part:
    ranks = shard if placement.share is Share.shard else 1
    try:
        return Part(sizes, placement, placed(sizes, placement, ranks), workload.of(sizes.name), ranks)
    except ValueError as error:
        raise UserError(f"placement.{sizes.name}: {error}") from error


def placements_of(model: Model, config: RunConfig) -> dict[str, PlacementConfig]:
    return {sizes.name: placement_of(sizes.name, config) for sizes in model.sizes}


def shard_of(mesh: MeshConfig, ranks: int) -> int:
    """The ranks that hold one copy of what is sharded. Raises UserError where they do not make whole copies."""
    shard = mesh.shard or ranks // (mesh.replicate or 1)
    if shard < 1 or ranks % shard or (mesh.replicate is not None and shard * mesh.replicate != ranks):
        said = f"mesh.shard={mesh.shard or 'all'} x mesh.replicate={mesh.replicate or 'all'}"
        fits: Sequence[int] = [size for size in range(1, ranks + 1) if ranks % size == 0]
        nearest = min(fits, key=lambda size: abs(size - max(shard, 1)))
        raise UserError(f"{said} does not make {ranks} ranks; mesh.shard={nearest} does")
    return shard
