"""A component directory's safetensors files: which tensor is stored where, and in what shape."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

_BASE_NAMES = ("diffusion_pytorch_model", "model")  # diffusers, transformers


class CheckpointError(ValueError):
    """The stored weights cannot fill the module: says which file or tensor, and why."""


@dataclass(frozen=True)
class StoredTensor:
    file: Path
    key: str
    shape: tuple[int, ...]


def open_checkpoint(directory: Path, variant: str | None = None) -> dict[str, StoredTensor]:
    """Every tensor stored in a component's directory, by key; only headers are read.

    Takes one `.safetensors` file or an index of several, under the names diffusers and transformers use, with
    `variant` in them ("fp16") where given. Raises CheckpointError for a missing, pickled or truncated file, for an
    index that does not hold, and for a key stored twice.
    """
    stored: dict[str, StoredTensor] = {}
    for file in _weight_files(directory, variant):
        for tensor in _stored_tensors(file):
            if tensor.key in stored:
                raise CheckpointError(f"{tensor.key} is stored twice: in {stored[tensor.key].file} and in {file}")
            stored[tensor.key] = tensor
    return stored


def _weight_files(directory: Path, variant: str | None) -> list[Path]:
    for base in _BASE_NAMES:
        index = directory / ".".join(filter(None, (base, "safetensors", "index", variant, "json")))
        if index.is_file():
            return _indexed_files(index)
        single = directory / ".".join(filter(None, (base, variant, "safetensors")))
        if single.is_file():
            return [single]
    wanted = " or ".join(f"{base}{'.' + variant if variant else ''}.safetensors" for base in _BASE_NAMES)
    pickled = sorted(p.name for p in directory.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    found = f"; {pickled[0]} is a pickle, convert it with save_pretrained(safe_serialization=True)" if pickled else ""
    raise CheckpointError(f"{directory} has no {wanted}, nor an index of such files{found}")


def _indexed_files(index: Path) -> list[Path]:
    """The files an index names, each holding the keys that the index says it holds."""
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors files: {error!r}") from error
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    for file in files:
        promised = {key for key, name in weight_map.items() if name == file.name}
        absent = promised - {tensor.key for tensor in _stored_tensors(file)}
        if absent:
            raise CheckpointError(f"{index} says that {file.name} holds {sorted(absent)[0]}, and it does not")
    return files


def _stored_tensors(file: Path) -> Iterator[StoredTensor]:
    try:
        with safe_open(file, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118 (no mapping: it has no iterator)
                yield StoredTensor(file, key, tuple(handle.get_slice(key).get_shape()))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors (truncated?): {error}") from error
