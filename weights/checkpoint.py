"""A component directory's safetensors files: which tensor is stored where and how, and which weight it fills."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

_BASE_NAMES = ("diffusion_pytorch_model", "model")  # diffusers, transformers


class CheckpointError(ValueError):
    """The stored weights cannot fill the module: says which file or tensor, and why."""


class KeysDiffer(CheckpointError):
    """The stored keys are not the module's: load through the library that knows how they map, then place.

    `missing`: weights of the module that are not stored. `extra`: stored tensors that the module has no place for.
    """

    def __init__(self, directory: str, missing: Sequence[str], extra: Sequence[str]) -> None:
        super().__init__(directory, missing, extra)  # all of it in args, so that the error can be sent to other ranks
        self.directory, self.missing, self.extra = directory, tuple(missing), tuple(extra)

    def __str__(self) -> str:
        parts = [f"{len(keys)} {kind} ({few(keys)})" for kind, keys in self._kinds() if keys]
        return f"{self.directory}: the stored keys are not the module's: {' and '.join(parts)}"

    def _kinds(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return ("missing", self.missing), ("extra", self.extra)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its elements lie contiguous, row by row, from the file's byte `offset` on."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


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


def match_keys(
    directory: Path,
    weights: Iterable[Sequence[str]],
    *,
    rename: Callable[[str], str] | None = None,
    variant: str | None = None,
) -> list[StoredTensor]:
    """For each weight of a module, given by all the names it has there, the one tensor in `directory` that fills it.

    A tied weight needs one of its names. `rename` maps a stored key to the module's name for it. Only headers are
    read. Raises KeysDiffer where the keys are not the module's one to one, CheckpointError for files that are bad.
    """
    stored: dict[str, StoredTensor] = {}
    for key, tensor in open_checkpoint(directory, variant).items():
        name = rename(key) if rename else key
        twin = stored.setdefault(name, tensor)
        if twin is not tensor:
            raise CheckpointError(f"{directory} stores {name} twice: as {twin.key} and as {key}")
    tied = [tuple(names) for names in weights]
    known = {name for names in tied for name in names}
    missing = [names[0] for names in tied if not any(name in stored for name in names)]
    extra = [tensor.key for name, tensor in stored.items() if name not in known]
    if missing or extra:
        raise KeysDiffer(str(directory), sorted(missing), sorted(extra))
    return [next(stored[name] for name in names if name in stored) for names in tied]


def refuse_misshapen(wanted: Iterable[tuple[StoredTensor, Sequence[int]]]) -> None:
    """Raise CheckpointError where a tensor is not stored in the shape that the module has for it."""
    misshapen = [(tensor, list(shape)) for tensor, shape in wanted if tensor.shape != tuple(shape)]
    if misshapen:
        texts = [f"{t.key} is stored as {list(t.shape)}, the module has {shape}" for t, shape in misshapen]
        raise CheckpointError(f"{misshapen[0][0].file.parent}: {few(texts)}")


def few(items: Sequence[str], limit: int = 3) -> str:
    """The first of some items, for an error message, and how many more there are."""
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return "; ".join(items[:limit]) + rest


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
    """safe_open checks the whole header against the file's size, but does not tell where the bytes lie."""
    try:
        with safe_open(file, framework="pt"), file.open("rb") as raw:
            header_bytes = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(header_bytes))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors (truncated?): {error}") from error
    for key, entry in header.items():
        if key != "__metadata__":
            offset = 8 + header_bytes + entry["data_offsets"][0]
            yield StoredTensor(file, key, tuple(entry["shape"]), _dtype(file, key, entry["dtype"]), offset)


def _dtype(file: Path, key: str, name: str) -> torch.dtype:
    """The table of safetensors' format: https://huggingface.co/docs/safetensors/metadata_parsing."""
    name_in_torch = {
        "BOOL": "bool",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2": "float8_e5m2",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "BF16": "bfloat16",
        "C64": "complex64",
    }.get(name, name.replace("F", "float").replace("U", "uint").replace("I", "int"))
    dtype = getattr(torch, name_in_torch, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{file} stores {key} as {name}, a dtype that torch does not have")
    return dtype
