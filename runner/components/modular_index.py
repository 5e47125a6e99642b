"""What a modular_model_index.json says: the class of pipeline, its settings, where each component is.

Blocks come from diffusers only: those that a directory brings as Python files are refused. An index also names a
repository for each component; nothing is fetched from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers

from runner.components.modular import class_of, experimental, is_block
from runner.errors import UserError

INDEX = "modular_model_index.json"
_CODE = "modular_config.json"  # where a directory names blocks of its own


@dataclass(frozen=True)
class Spec:
    """What an index says of a component: the library and name of its class, the subfolder that its files are in, and
    the repository (or the path, elsewhere) that they came from."""

    library: str
    class_name: str
    subfolder: str
    origin: str


def modular_class(index_file: Path, index: Mapping[str, Any]) -> Any:
    """The class for the pipeline that the index names. Raises UserError."""
    if (index_file.parent / _CODE).exists():
        raise UserError(
            f"{index_file.parent / _CODE} brings blocks of the directory's own, and code of a model is never run"
        )
    name, blocks_name = index.get("_class_name"), index.get("_blocks_class_name")
    with experimental(f"{index_file}: {name!r} cannot be imported"):
        cls = getattr(diffusers, name, None) if isinstance(name, str) else None
        if not (isinstance(cls, type) and issubclass(cls, diffusers.ModularPipeline)):
            raise UserError(
                f"{index_file}: {name!r} is no modular pipeline of diffusers {diffusers.__version__}, which is "
                f"installed; the directory was written by {index.get('_diffusers_version', 'an unknown version')}"
            )
        blocks: Any = getattr(diffusers, blocks_name, None) if isinstance(blocks_name, str) else None
        if not _are_blocks(blocks):  # as diffusers does, for a class that holds none itself
            blocks = getattr(diffusers, cls.default_blocks_name or "", None)
    if not _are_blocks(blocks):
        raise UserError(f"{index_file}: {blocks_name!r} are no blocks of diffusers, and code of a model is never run")
    with experimental(f"{index_file}: the blocks {blocks.__name__} cannot be put together"):
        return class_of(cls, blocks)


def told_apart(index_file: Path, cls: Any, index: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Spec]]:
    """The pipeline's settings, None for a component that is not there, and what the index says of the others.

    What has no entry, or one without an origin, is made by the constructor (guiders, processors), or left out.
    """
    settings: dict[str, Any] = {name: index[name] for name in cls.settings if name in index}
    listed: dict[str, Spec] = {}
    for name, is_made in cls.parts.items():
        entry = index.get(name)
        if entry is not None and not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], dict)):
            raise UserError(f"{index_file}: {name} is {entry!r:.80}; a component is [library, class, where it is]")
        said = entry[2] if entry else {}
        if origin := said.get("pretrained_model_name_or_path", said.get("repo")):
            listed[name] = _spec(index_file, name, said, origin)
        elif not is_made:
            settings[name] = None
    return settings, listed


def folder_of(index_file: Path, name: str, spec: Spec) -> Path:
    """A component's folder, inside the index's. Raises UserError where it is not there: nothing is fetched."""
    root = index_file.parent
    for inside in (spec.subfolder, name):
        if inside and (root / inside).is_dir():
            return root / inside
    raise UserError(
        f"{root} has no folder {spec.subfolder or name}; {index_file.name} says that {name} is that of "
        f"{spec.origin!r}, and nothing is fetched: copy it there, or give its folder as components.{name}.path"
    )


def _spec(index_file: Path, name: str, said: Mapping[str, Any], origin: Any) -> Spec:
    hint, subfolder = said.get("type_hint"), said.get("subfolder") or ""
    library, class_name = hint if isinstance(hint, list) and len(hint) == 2 else (None, None)
    if not all(isinstance(text, str) for text in (library, class_name, subfolder, origin)):
        raise UserError(f"{index_file}: {name} has {dict(said)!r:.120}; it needs a type_hint, [library, class]")
    if Path(subfolder).is_absolute() or ".." in Path(subfolder).parts:
        raise UserError(f"{index_file}: the subfolder of {name} is {subfolder!r}, outside of the directory")
    return Spec(str(library), str(class_name), subfolder, origin)


def _are_blocks(cls: Any) -> bool:
    return is_block(cls) and bool(cls.block_classes)
