"""A diffusers directory on disk: checked before anything is loaded, and identified."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from runner.components.load import check_placement, placement_of
from runner.components.skeleton import library_of
from runner.config import RunConfig
from runner.errors import UserError
from weights.checkpoint import Checkpoint, CheckpointError, Library


def read_index(root: Path) -> dict[str, Any]:
    """The directory's model_index.json. Raises UserError when there is no such thing."""
    if not root.is_dir():
        raise UserError(f"model.path: no directory {root}")
    index = root / "model_index.json"
    if not index.is_file():
        raise UserError(f"model.path: {root} is not a diffusers directory: it holds no model_index.json")
    try:
        return json.loads(index.read_text())
    except ValueError as error:
        raise UserError(f"{index} is not JSON: {error}") from error


def read_directory(root: Path, config: RunConfig) -> tuple[dict[str, Any], dict[str, type]]:
    """model_index.json and the class of each component, checked together with the placements; nothing is loaded."""
    index = read_index(root)
    classes = component_classes(root, index)
    modules = [name for name, cls in classes.items() if issubclass(cls, nn.Module)]
    for name in config.placement:
        if name != "default" and name not in modules:
            raise UserError(f"placement.{name}: the model has no such component; it has {', '.join(modules)}")
    for name in modules:
        check_placement(name, placement_of(name, config))
        check_weights(root / name, library_of(classes[name]))
    pipeline_class(root, index)
    return index, classes


def pipeline_class(root: Path, index: Mapping[str, Any]) -> Any:
    """The class that model_index.json names.

    Built from its parts rather than by `from_pretrained`: that one loads optional components (both DiTs of Wan) from
    disk even where they are passed in.
    """
    cls = getattr(diffusers, str(index.get("_class_name")), None)
    if not (isinstance(cls, type) and issubclass(cls, DiffusionPipeline)):
        raise UserError(f"{root / 'model_index.json'}: {index.get('_class_name')!r} is no pipeline of this diffusers")
    return cls


def is_component(entry: Any) -> bool:
    """Components are [library, class] in model_index.json, [null, null] where there is none; the rest is settings."""
    return isinstance(entry, list) and len(entry) == 2 and all(part is None or isinstance(part, str) for part in entry)


def component_classes(root: Path, index: Mapping[str, Any]) -> dict[str, type]:
    """The class of each component that the directory has, by name."""
    classes = {}
    for name, entry in index.items():
        if not is_component(entry) or entry[0] is None:
            continue
        # A name from a file becomes a path, and a library from a file becomes an import: only known ones do.
        library = {"diffusers": diffusers, "transformers": transformers}.get(entry[0])
        library = library or getattr(diffusers.pipelines, entry[0], None)
        cls = getattr(library, entry[1], None)
        if not isinstance(cls, type) or Path(name).name != name:
            raise UserError(f"{root / 'model_index.json'}: {name} is a {entry[0]} {entry[1]}, which is not installed")
        classes[name] = cls
    return classes


def check_weights(folder: Path, library: Library) -> None:
    """Refuse a component folder whose weights are missing, pickled, or damaged; only headers are read."""
    try:
        Checkpoint(folder, library).stored()
    except CheckpointError as error:
        raise UserError(str(error)) from error


def identity(root: Path) -> str:
    """A hash of what the directory computes: every config and tokenizer file, and a sample of every weight file.

    Hashing 60 GB would take minutes at each start. A file's header, size and 64 chunks spread through it tell one
    checkpoint from another; a change of single values between the chunks goes unseen.
    """
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*")):
        if file.suffix in (".json", ".txt", ".model") and file.is_file():
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
        elif file.suffix == ".safetensors":
            digest.update(f"{file.relative_to(root)}\0{file.stat().st_size}\0".encode())
            for chunk in _sample(file):
                digest.update(chunk)
    return digest.hexdigest()


def _sample(file: Path, chunks: int = 64, size: int = 16384) -> Iterator[bytes]:
    total = file.stat().st_size
    with file.open("rb") as stream:
        header = struct.unpack("<Q", stream.read(8))[0]
        yield stream.read(header)
        for i in range(chunks):
            stream.seek(max(8 + header, (total - size) * i // (chunks - 1)))
            yield stream.read(size)
