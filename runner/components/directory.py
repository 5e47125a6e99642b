"""A diffusers directory on disk: what model_index.json lists, checked before anything is loaded."""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from runner.components import modular_index
from runner.components.changing import changed, changed_settings, refuse_absent
from runner.components.choosing import check_names, check_taken, chosen_pipeline
from runner.components.classes import INDEX, component_class, pipeline_class
from runner.components.constructor import Arguments, Entry, as_entry, parameters_of, told_apart
from runner.components.elsewhere import class_elsewhere
from runner.components.files import check_files
from runner.components.groups import check_placement, placement_of
from runner.components.needs import refuse_missing, refuse_unmakeable
from runner.components.quantised import only_whole
from runner.components.reading import file_errors, reading
from runner.components.single_file import single_source
from runner.components.source import Source
from runner.components.variant import of_variant
from runner.config import ComponentConfig, Rest, RunConfig, Share
from runner.errors import UserError
from weights.files import FileError, read_object, why_unreadable
from weights.header import CheckpointError

NO_CHANGES: Mapping[str, ComponentConfig] = MappingProxyType({})


@dataclass(frozen=True)
class Directory:
    """What a pipeline is put together from, read as `DiffusionPipeline.from_pretrained` reads it.

    `sources`: each component that is there, by its name; `settings`: the other arguments of the pipeline's constructor,
    None for a component that is not there; `left_out`: what the model lists and the pipeline does not take. One thing
    more than there is accepted: null for a component that the pipeline can do without.
    """

    root: Path
    pipeline: Any
    sources: Mapping[str, Source]
    settings: Mapping[str, Any]
    left_out: tuple[str, ...] = ()

    @property
    def classes(self) -> dict[str, Any]:
        return {name: source.cls for name, source in self.sources.items()}

    @property
    def modules(self) -> list[str]:
        return [name for name, source in self.sources.items() if source.is_module]

    def folder(self, name: str) -> Path:
        return self.sources[name].folder


def directory_of(config: RunConfig, *, weights: bool = True) -> Directory:
    """The directory `model.path`, with the pipeline and the components that the settings choose."""
    model = config.model
    return read_directory(
        Path(model.path),
        pipeline=model.pipeline,
        workflow=model.workflow,
        variant=model.variant,
        components=config.components,
        weights=weights,
    )


def read_directory(
    root: Path,
    *,
    pipeline: str | None = None,
    workflow: str | None = None,
    variant: str | None = None,
    components: Mapping[str, ComponentConfig] = NO_CHANGES,
    weights: bool = True,
) -> Directory:
    """Read and check all that can be known without loading weights. Raises UserError that names the file and the fix.

    `pipeline` names another class than the directory's own, over the same components; `workflow` the task of a modular
    one; `variant` which weight files are read; `components` says which components come from elsewhere, and what is
    changed of them. `weights=False`: what a model takes is known from its configurations, so weights and vocabularies
    may be missing; a source then says why its weights are absent.
    """
    elsewhere = {name: Path(one.path) for name, one in components.items() if one.path is not None}
    if os.path.isfile(root):
        raise UserError(
            f"model.path: {root} is a file; name a diffusers directory, and give it the weights of one component in it "
            f"by components.transformer.path={root}"
        )
    with file_errors():
        names = _names_in(root)
        if modular_index.INDEX in names and INDEX not in names:
            if pipeline is not None:
                raise UserError(f"model.pipeline: {root} is a modular pipeline, whose blocks no other class takes")
            directory = _read_modular(root, workflow, components, elsewhere)
        elif workflow is not None:
            raise UserError(f"model.workflow: {root} holds no {modular_index.INDEX}, and other pipelines have one task")
        elif INDEX in names:
            directory = _read(root, pipeline, components, elsewhere)
        else:
            raise UserError(f"model.path: {root} is not a diffusers directory: it holds no {INDEX}")
        refuse_missing(directory.pipeline)
        sources = of_variant(directory.sources, elsewhere, variant, root)
        for source in sources.values():
            if weights or source.is_module:
                _check_folder(root, source)
        sources = {name: _changed(source, components) for name, source in sources.items()}
        refuse_absent(directory.pipeline, {**sources, **getattr(directory.pipeline, "made", {})}, components)
        for name, source in sources.items():
            if source.is_module:
                sources[name] = replace(source, absent=_absent(source, needed=weights))
    return replace(directory, sources=sources)


def _read(
    root: Path, pipeline: str | None, components: Mapping[str, ComponentConfig], elsewhere: Mapping[str, Path]
) -> Directory:
    index = read_object(root / INDEX)
    own = pipeline_class(root / INDEX, index)
    cls = own
    if pipeline is not None:
        entries = _arguments(root, own, index, {}).listed
        cls = chosen_pipeline(pipeline, {name: _listed(root, name, entry).cls for name, entry in entries.items()})
    check_names(cls, components)
    found = _arguments(root, cls, index, elsewhere)
    sources = {name: _listed(root, name, entry) for name, entry in found.listed.items()}
    if cls is not own:
        check_taken(root, cls, {name: source.cls for name, source in sources.items()})
    for name, path in elsewhere.items():
        entry = as_entry(index.get(name))
        sources[name] = _elsewhere(name, path, cls, None if entry is None else _listed(root, name, entry))
    refuse_unmakeable(cls, found.settings, sources)
    in_order = {name: sources[name] for name in parameters_of(cls) if name in sources}
    return Directory(root, cls, in_order, found.settings, found.left_out)


def _read_modular(
    root: Path, workflow: str | None, components: Mapping[str, ComponentConfig], elsewhere: Mapping[str, Path]
) -> Directory:
    file = root / modular_index.INDEX
    index = read_object(file)
    cls = modular_index.modular_class(file, index, workflow)
    if unknown := next((name for name in components if name not in cls.parts), None):
        raise UserError(f"components.{unknown}: a {cls.__name__} has no such component; it has {', '.join(cls.parts)}")
    settings, listed = modular_index.told_apart(file, cls, index)
    sources = {}
    for name in cls.parts:
        listed_here = None
        if name in listed and (name not in elsewhere or elsewhere[name].suffix == ".safetensors"):
            folder = modular_index.folder_of(file, name, listed[name])
            chosen = modular_index.chosen_by_library(folder, listed[name])
            chosen = chosen or component_class(file, name, *listed[name].entry)
            variant = listed[name].variant if issubclass(chosen, nn.Module) else None
            listed_here = Source(name, chosen, folder, variant)
        if name in elsewhere:
            sources[name] = _elsewhere(name, elsewhere[name], cls, listed_here)
        elif listed_here is not None:
            sources[name] = listed_here
    settings = {name: value for name, value in settings.items() if name not in sources}
    for name in cls.made.keys() & components.keys() - sources.keys():
        if changes := changed_settings(cls, name, components[name]):
            settings[name] = changes
    return Directory(root, cls, sources, settings)


def _arguments(root: Path, cls: Any, index: Mapping[str, Any], elsewhere: Mapping[str, Path]) -> Arguments:
    """By the library's own reading of an index, which would warn of what the class does not take; `left_out` tells."""
    known = {name: value for name, value in index.items() if name.startswith("_") or name in parameters_of(cls)}
    with reading(f"{root / INDEX} does not fit {cls.__name__}"):
        given, _, _ = cls.extract_init_dict(known)
    unknown = {name: value for name, value in index.items() if name not in known}
    return told_apart(root / INDEX, cls, given | unknown, elsewhere)


def _listed(root: Path, name: str, entry: Entry) -> Source:
    own = root / name
    cls = component_class(root / INDEX, name, *entry)
    return Source(name, cls, own if os.path.isdir(own) else root)


def _elsewhere(name: str, path: Path, cls: Any, listed: Source | None) -> Source:
    """The component at a path; `listed` is the model's own, where it has one."""
    if path.suffix == ".safetensors" and not os.path.isdir(path):
        return single_source(name, path, listed)
    if os.path.isfile(path):
        raise UserError(
            f"components.{name}.path: {path} is no folder; of files, weights are read from .safetensors only"
        )
    return Source(name, class_elsewhere(name, path, cls, None if listed is None else listed.cls), path)


def check_placements(directory: Directory, config: RunConfig) -> None:
    """Raises UserError for a placement that cannot be, or of a component that is not there."""
    for name in config.placement:
        if name != "default" and name not in directory.modules:
            listed = ", ".join(directory.modules)
            raise UserError(f"placement.{name}: the model has no such component; it has {listed}")
    for name in directory.modules:
        placement = placement_of(name, config)
        check_placement(name, placement)
        whole = placement.share is Share.replicate and placement.rest in (Rest.device, Rest.auto)
        if not whole and (why := only_whole(directory.folder(name) / "config.json")):
            raise UserError(
                f"placement.{name}: {why}, which only its library can load: use share=replicate rest=device"
            )


def _absent(source: Source, *, needed: bool) -> str | None:
    """Why the headers of its weights cannot be read; raised where they are needed."""
    try:
        source.checkpoint.stored()
    except CheckpointError as error:
        if needed:
            raise
        return str(error)
    return None


def _names_in(root: Path) -> set[str]:
    try:
        return {path.name for path in root.iterdir()}
    except FileNotFoundError:
        base = "" if root.is_absolute() else f" (from {Path.cwd()}, the working folder; give the whole path elsewhere)"
        raise UserError(f"model.path: no directory {root}{base}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: {why_unreadable(root, error)}") from error


def _changed(source: Source, components: Mapping[str, ComponentConfig]) -> Source:
    return changed(source, components[source.name]) if source.name in components else source


def _check_folder(root: Path, source: Source) -> None:
    try:
        check_files(source.cls, source.folder)
    except FileError as error:
        own = root / source.name
        if source.folder != root:
            raise
        missing = f"{root} has no folder {source.name}, which {INDEX} lists: the download or copy is incomplete"
        raise UserError(
            why_unreadable(own, FileNotFoundError(errno.ENOENT, "")) if own.is_symlink() else missing
        ) from error
