"""A component's directory: which of its files are the weights, what is stored in them, and which weight it fills."""

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch

from weights.files import read_object, why_unreadable
from weights.header import CheckpointError, StoredTensor, stored_tensors
from weights.weight_file import Identity, identity

_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")  # as transformers 5 knows them


class Library(Enum):
    """Whose class a component is: its rule says which files of the directory are the weights, of this name."""

    diffusers = "diffusion_pytorch_model"
    transformers = "model"


class KeysDiffer(CheckpointError):
    """Weights of the module are not stored under the names it has for them: its library may know how they map.

    `missing`: these weights. `extra`: stored tensors that the module has no place for.
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
class Checkpoint:
    """A component's directory, and how its library reads it.

    `variant` is in the files' names ("fp16"). `rename` maps a stored key to the module's name for it. `single`: the one
    file that holds the weights, wherever it is and whatever it is called; the directory then has the configuration.
    """

    directory: Path
    library: Library = Library.diffusers
    variant: str | None = None
    rename: Callable[[str], str] | None = None
    single: Path | None = None

    def files(self) -> list[Path]:
        if self.single is not None:
            return [self.single]
        return weight_files(self.directory, self.library, self.variant)

    def identities(self) -> dict[Path, Identity]:
        """What each of the files is now. To be asked before `stored`: then no header is of another file."""
        identities = {}
        for file in self.files():
            try:
                identities[file] = identity(file)
            except OSError as error:
                raise CheckpointError(why_unreadable(file, error)) from error
        return identities

    def stored(self) -> dict[str, StoredTensor]:
        """Every tensor that its library finds there, by the module's name for it; only headers are read.

        Raises CheckpointError for files that are missing, pickled or damaged, an index that does not hold, and a
        tensor that is stored twice.
        """
        stored: dict[str, StoredTensor] = {}
        if self.single is not None:
            tensors = iter(stored_tensors(self.single))
        else:
            tensors = _tensors(self.directory, self.library, self.variant)
        for tensor in tensors:
            name = self.rename(tensor.key) if self.rename else tensor.key
            twin = stored.setdefault(name, tensor)
            if twin is not tensor:
                where = [f"as {one.key} in {one.file.name}" for one in (twin, tensor)]
                raise CheckpointError(f"{self.directory} stores {name} twice: {' and '.join(where)}")
        return stored


def weight_files(directory: Path, library: Library, variant: str | None = None) -> list[Path]:
    """The safetensors files that `from_pretrained(directory, use_safetensors=True)` of a library reads, in its order.

    diffusers takes an index before a single file (`ModelMixin.from_pretrained`). transformers takes what config.json
    names as `transformers_weights`, else a single file before an index (`_get_resolved_checkpoint_files`). Neither
    looks at the other's names, at other variants, or for a single file where the index that it takes is stale.
    Raises CheckpointError where there is nothing that the library would read, and for an index that is none; whether
    the files are there is for who opens them.
    """
    return _find(directory, library, variant)[0]


def match_keys(checkpoint: Checkpoint, weights: Iterable[Sequence[str]]) -> list[StoredTensor]:
    """For each weight of a module, given by all the names it has there, the one stored tensor that fills it.

    A tied weight needs one of its names, and what is stored beside is left alone, as the libraries do. Only headers are
    read. Raises KeysDiffer where a weight is not stored under any of its names, CheckpointError for files that are bad.
    """
    stored = checkpoint.stored()
    tied = [tuple(names) for names in weights]
    missing = [names[0] for names in tied if not any(name in stored for name in names)]
    if missing:
        known = {name for names in tied for name in names}
        extra = [tensor.key for name, tensor in stored.items() if name not in known]
        raise KeysDiffer(str(checkpoint.single or checkpoint.directory), sorted(missing), sorted(extra))
    return [next(stored[name] for name in names if name in stored) for names in tied]


def refuse_unfit(wanted: Iterable[tuple[StoredTensor, torch.Tensor]]) -> None:
    """Raise CheckpointError where a tensor is not stored in the shape that the module has for it, or as integers where
    the module computes with floats: quantised weights are more than their numbers."""
    wrong = []
    for stored, tensor in wanted:
        if stored.shape != tensor.shape:
            wrong.append((stored, f"as {list(stored.shape)}, the module has {list(tensor.shape)}"))
        elif stored.dtype.is_floating_point != tensor.is_floating_point():
            wrong.append((stored, f"in {stored.dtype}, the module has {tensor.dtype}"))
    if wrong:
        texts = [f"{stored.key} is stored {how}" for stored, how in wrong]
        raise CheckpointError(f"{wrong[0][0].file.parent}: {few(texts)}")


def few(items: Sequence[str], limit: int = 3) -> str:
    """The first of some items, for an error message, and how many more there are."""
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return "; ".join(items[:limit]) + rest


def _tensors(directory: Path, library: Library, variant: str | None) -> Iterator[StoredTensor]:
    """Of files that an index names, diffusers takes only the keys that it lists; transformers takes what is there."""
    files, listed = _find(directory, library, variant)
    for file in files:
        in_file = list(stored_tensors(file))
        promised = {key for key, name in listed.items() if name == file.name}
        if absent := sorted(promised - {tensor.key for tensor in in_file}):
            raise CheckpointError(f"the index of {directory} says that {file.name} holds {absent[0]}, and it does not")
        for tensor in in_file:
            if library is Library.transformers or not listed or tensor.key in listed:
                yield tensor


def _find(directory: Path, library: Library, variant: str | None) -> tuple[list[Path], dict[str, str]]:
    """The files, and what their index says: the file's name by key; nothing where there is no index."""
    single = directory / ".".join(filter(None, (library.value, variant, "safetensors")))
    index = directory / ".".join(filter(None, (library.value, "safetensors", "index", variant, "json")))
    if library is Library.transformers:
        _refuse_distributed(directory)
        if (named := _named_by_config(directory)) is not None:
            return _indexed(named) if named.name.endswith(".safetensors.index.json") else ([named], {})
        if os.path.isfile(single):
            return [single], {}
    if os.path.isfile(index):
        return _indexed(index)
    if os.path.isfile(single):
        return [single], {}
    raise CheckpointError(_nothing(directory, single))


def _indexed(index: Path) -> tuple[list[Path], dict[str, str]]:
    """Both libraries ask for `metadata`, and for names of files beside the index."""
    found = read_object(index)
    names = found.get("weight_map")
    if not isinstance(names, dict) or not names or not isinstance(found.get("metadata"), dict):
        raise CheckpointError(f"{index} is no index of safetensors files: it lacks the objects weight_map and metadata")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which is no file beside it")
    return [index.parent / name for name in sorted(set(names.values()))], names


def _named_by_config(directory: Path) -> Path | None:
    """The file that transformers' config.json asks for by name, if it does."""
    config = directory / "config.json"
    name = read_object(config).get("transformers_weights") if os.path.isfile(config) else None
    if name is None:
        return None
    if not isinstance(name, str) or Path(name).name != name or not name.endswith((".safetensors", ".index.json")):
        raise CheckpointError(f"{config}: transformers_weights is {name!r}, which is no safetensors file beside it")
    return directory / name


def _refuse_distributed(directory: Path) -> None:
    """transformers takes such files before all others, and reads them for the ranks that wrote them."""
    found = [name for name in _names(directory) if _DISTRIBUTED.fullmatch(name)]
    if found:
        raise CheckpointError(f"{directory} holds a distributed checkpoint ({found[0]}); save it with save_pretrained")


def _nothing(directory: Path, single: Path) -> str:
    """Why there are no weights, from what is there instead."""
    names = _names(directory)
    if single.name in names:
        return (
            why_unreadable(single, IsADirectoryError(errno.EISDIR, "it is a folder"))
            if single.is_dir()
            else (why_unreadable(single, FileNotFoundError(errno.ENOENT, "No such file or directory")))
        )
    found = ""
    if pickled := [name for name in names if Path(name).suffix in _PICKLES]:
        found = f"; {pickled[0]} is a pickle, which can run code when read: convert it with save_pretrained"
    elif others := [name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))]:
        variant = re.fullmatch(rf"{single.name.partition('.')[0]}\.([\w-]+)\.safetensors", others[0])
        fix = f"say model.variant={variant[1]}, or rename it" if variant else "rename it"
        found = f"; it has {few(others)}, which is not what its library reads: {fix}"
    else:
        found = "; the download or copy is incomplete"
    return f"{directory} holds no {single.name}, nor an index of such files{found}"


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError as error:
        raise CheckpointError(why_unreadable(directory, error)) from error
