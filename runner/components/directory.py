"""A diffusers directory on disk: what model_index.json lists, checked before anything is loaded."""

import errno
import inspect
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES, simple_get_class_obj
from torch import nn

from runner.components import modular
from runner.components.files import check_files
from runner.components.load import check_placement, placement_of
from runner.components.needs import does_without, refuse_missing
from runner.components.reading import file_errors, reading
from runner.components.skeleton import library_of
from runner.config import Rest, RunConfig, Share
from runner.errors import UserError
from weights.checkpoint import Checkpoint
from weights.files import FileError, read_object, why_unreadable

INDEX = "model_index.json"
_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


@dataclass(frozen=True)
class Directory:
    """What a directory's model_index.json says, read as `DiffusionPipeline.from_pretrained` reads it.

    `classes`: of each component that is there, by its name; `settings`: the other arguments of the pipeline's
    constructor, None for a component that is not there. What the constructor does not take is left out, with the
    library's warning. One thing more is accepted: null for a component that the pipeline can do without.
    `folders`: of the components whose folder does not have their name.
    """

    root: Path
    pipeline: Any
    classes: Mapping[str, type]
    settings: Mapping[str, Any]
    folders: Mapping[str, Path] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """Of a component: its own, or the root where it has none."""
        if name in self.folders:
            return self.folders[name]
        own = self.root / name
        return own if os.path.isdir(own) else self.root

    @property
    def modules(self) -> list[str]:
        return [name for name, cls in self.classes.items() if issubclass(cls, nn.Module)]


def read_directory(root: Path) -> Directory:
    """Read and check all that can be known without loading weights. Raises UserError that names the file and the fix.

    The pipeline is put together from its parts rather than by `from_pretrained`: that one loads optional components
    (both DiTs of Wan) from disk even where they are passed in.
    """
    with file_errors():
        names = _names_in(root)
        directory = _read_modular(root) if modular.INDEX in names and INDEX not in names else _read(root, names)
        refuse_missing(directory.pipeline)
        for name in directory.classes:
            _check_component(directory, name)
    return directory


def _read(root: Path, names: Collection[str]) -> Directory:
    if INDEX not in names:
        raise UserError(f"model.path: {root} is not a diffusers directory: it holds no {INDEX}")
    index = read_object(root / INDEX)
    cls = _pipeline_class(root / INDEX, index)
    with reading(f"{root / INDEX} does not fit {cls.__name__}"):
        given, _, _ = cls.extract_init_dict(dict(index))
    settings, listed = _told_apart(root / INDEX, cls, given)
    classes = {name: _component_class(root / INDEX, name, *entry) for name, entry in listed.items()}
    return Directory(root, cls, classes, settings)


def _read_modular(root: Path) -> Directory:
    file = root / modular.INDEX
    index = read_object(file)
    cls = modular.modular_class(file, index)
    settings, listed = modular.told_apart(file, cls, index)
    classes = {name: _component_class(file, name, spec.library, spec.class_name) for name, spec in listed.items()}
    return Directory(
        root, cls, classes, settings, {name: modular.folder_of(file, name, listed[name]) for name in listed}
    )


def check_placements(directory: Directory, config: RunConfig) -> None:
    """Raises UserError for a placement that cannot be, or of a component that is not there."""
    for name in config.placement:
        if name != "default" and name not in directory.modules:
            listed = ", ".join(directory.modules)
            raise UserError(f"placement.{name}: the model has no such component; it has {listed}")
    for name in directory.modules:
        placement = placement_of(name, config)
        check_placement(name, placement)
        whole = placement.share is Share.replicate and placement.rest is Rest.device
        if not whole and (why := _only_whole(directory.folder(name) / "config.json")):
            raise UserError(
                f"placement.{name}: {why}, which only its library can load: use share=replicate rest=device"
            )


def _only_whole(config_file: Path) -> str | None:
    """Why a component cannot be built without its library's loader, which cannot be placed; None where it can."""
    with file_errors():
        config = read_object(config_file)
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]  # text_config and the like
    for part in parts:
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                method = part[key].get("quant_method", "") if isinstance(part[key], dict) else ""
                return f"{config_file} has a {key} ({method or 'of an unknown method'}): quantised weights"
    return f"{config_file} has a fusion_config: fused modules" if config.get("fusion_config") else None


def _names_in(root: Path) -> set[str]:
    try:
        return {path.name for path in root.iterdir()}
    except FileNotFoundError:
        base = "" if root.is_absolute() else f" (from {Path.cwd()}, the working folder; give the whole path elsewhere)"
        raise UserError(f"model.path: no directory {root}{base}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: {why_unreadable(root, error)}") from error


def _pipeline_class(index_file: Path, index: Mapping[str, Any]) -> Any:
    name = index.get("_class_name")
    if isinstance(name, list):
        raise UserError(f"{index_file}: {name} is a pipeline of the directory's own, and code of a model is never run")
    with reading(f"{index_file}: {name!r} cannot be imported"):
        cls = getattr(diffusers, name, None) if isinstance(name, str) else None
        _refuse_dummy(cls)
    if not (isinstance(cls, type) and issubclass(cls, DiffusionPipeline) and cls is not DiffusionPipeline):
        writer = index.get("_diffusers_version", "an unknown version")
        raise UserError(
            f"{index_file}: {name!r} is no pipeline of diffusers {diffusers.__version__}, which is installed; the "
            f"directory was written by {writer}"
        )
    return cls


def _told_apart(
    index_file: Path, cls: Any, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """The constructor's settings, and [library, class] of each component, by the rule of `from_pretrained`."""
    parameters = {name: one for name, one in inspect.signature(cls.__init__).parameters.items() if name != "self"}
    settings: dict[str, Any] = {}
    listed: dict[str, tuple[str, str]] = {}
    for name, one in parameters.items():
        optional = name in cls._optional_components
        if name not in given:
            if one.default is inspect.Parameter.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL):
                if not optional:
                    raise UserError(f"{index_file} lists no {name}, which a {cls.__name__} needs")
                settings[name] = None
        elif one.default is not inspect.Parameter.empty and not optional:
            settings[name] = given[name]
        elif given[name] in (None, [None, None]):
            if not optional and one.default is inspect.Parameter.empty and not does_without(cls, name):
                raise UserError(f"{index_file}: {name} is null, and a {cls.__name__} does not work without")
            settings[name] = None
        elif _is_entry(given[name]):
            listed[name] = given[name][0], given[name][1]
        else:
            raise UserError(f"{index_file}: {name} is {given[name]!r:.80}; a component is [library, class]")
    return settings, listed


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)


def _component_class(index_file: Path, name: str, library: str, class_name: str) -> type:
    """A library from a file becomes an import: only known ones do."""
    where = f"{index_file}: {name} is a {library} {class_name}"
    with reading(f"{where}, which cannot be imported"):
        known: Any = _LIBRARIES.get(library) or getattr(diffusers.pipelines, library, None)
    if not isinstance(known, ModuleType):
        code = index_file.parent / name / f"{library}.py"
        why = f"{code}, and code of a model is never run" if code.exists() else "which no library here provides"
        raise UserError(f"{where}, {why}")
    with reading(f"{where}, which cannot be imported"):
        try:
            cls = simple_get_class_obj(library, class_name)  # which knows the names that classes had before
        except AttributeError:
            raise UserError(f"{where}, which is not installed: {library} has no such class") from None
        _refuse_dummy(cls)
    if not isinstance(cls, type) or not _is_loadable(cls, library):
        raise UserError(f"{where}, which is no model, scheduler, tokenizer or processor")
    return cls


def _is_loadable(cls: type, library: str) -> bool:
    """By the rule of `load_sub_model`; a pipeline inside a pipeline is not."""
    if issubclass(cls, DiffusionPipeline) or not callable(getattr(cls, "from_pretrained", None)):
        return False
    if library not in _LIBRARIES:  # a module of diffusers.pipelines
        return True
    bases = [getattr(_LIBRARIES[library], name, None) for name in LOADABLE_CLASSES[library]]
    return issubclass(cls, tuple(base for base in bases if isinstance(base, type)))


def _refuse_dummy(cls: Any) -> None:
    """What the libraries give in place of a class whose packages are not installed; being called, it names them."""
    if type(cls).__name__ == "DummyObject":
        cls()


def _check_component(directory: Directory, name: str) -> None:
    cls, folder = directory.classes[name], directory.folder(name)
    try:
        check_files(cls, folder)
    except FileError as error:
        own = directory.root / name
        if folder == own:
            raise
        missing = f"{directory.root} has no folder {name}, which {INDEX} lists: the download or copy is incomplete"
        raise UserError(
            why_unreadable(own, FileNotFoundError(errno.ENOENT, "")) if own.is_symlink() else missing
        ) from error
    if issubclass(cls, nn.Module):
        Checkpoint(folder, library_of(cls)).stored()
