"""The files that a job names, each looked at once by the ranks together: whole, of a kind that is taken, hashed."""

import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import UserError
from runner.inputs.form import form_of, tensor_of
from runner.inputs.input_file import Form, InputFile, mapped
from runner.inputs.named import NamedFile
from runner.inputs.probe import Kind, Probe, Unreadable, probe
from weights.agreement import Group, gather, on_all_ranks, rank_in, size_of

_THREADS = 8  # reading waits for disks and networks, and hashing lets go of the interpreter
_SHOWN = 3  # of many files that are wrong


@dataclass(frozen=True)
class _Seen:
    """What one rank found out about a file for all."""

    sha256: str
    probe: Probe


def checked(values: Sequence[Any], group: Group) -> list[Any]:
    """The values with an InputFile for each NamedFile. Collective over `group`, whose ranks all name the same files.

    Every rank looks whether a file is there; its content is read by one of them. Raises UserError on all.
    """
    files: list[NamedFile] = []
    for value in values:
        mapped(value, lambda leaf: files.append(leaf) if isinstance(leaf, NamedFile) else None)
    first: dict[Path, NamedFile] = {}
    for file in files:
        first.setdefault(file.path, file)
    on_all_ranks(lambda: _refuse(_missing(list(first.values()))), group)
    mine = list(first.values())[rank_in(group) :: size_of(group)]
    seen: dict[Path, _Seen] = {}
    for part in gather(on_all_ranks(lambda: _look_at(mine), group), group):
        seen |= part

    def change(leaf: Any) -> Any:
        return _input_file(leaf, seen[leaf.path]) if isinstance(leaf, NamedFile) else leaf

    return [mapped(value, change) for value in values]  # the same on all ranks, errors too


def sha256_of(path: Path) -> str:
    """Of the content, a piece at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _missing(files: Sequence[NamedFile]) -> list[str]:
    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(zip(files, threads.map(_why_no_file, files), strict=True))
    return [f"{file.where}: {problem}" for file, problem in found if problem is not None]


def _why_no_file(file: NamedFile) -> str | None:
    try:
        found = file.path.stat()
    except (OSError, ValueError) as error:  # ValueError: a path that no system takes
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            return f"{file.path} cannot be read ({getattr(error, 'strerror', None) or error}); check the path"
        beside = "" if Path(file.written).is_absolute() else f" (relative to {file.path.absolute().parent})"
        return f"{file.written}: no such file{beside}; check the path"
    if stat.S_ISDIR(found.st_mode):
        return f"{file.written} is a folder; name a file in it, or several as a list"
    if not stat.S_ISREG(found.st_mode):
        return f"{file.written} is a device or a pipe; save it to a file first"
    if not os.access(file.path, os.R_OK):
        return f"{file.written} may not be read; change its permissions"
    return None


def _look_at(files: Sequence[NamedFile]) -> dict[Path, _Seen]:
    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(_seen, files))
    _refuse([problem for problem in found if isinstance(problem, str)])
    return {file.path: one for file, one in zip(files, found, strict=True) if isinstance(one, _Seen)}


def _seen(file: NamedFile) -> _Seen | str:
    """What the file is, or what is wrong with it."""
    try:
        told = probe(file.path)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if told.decoded_bytes > memory:
            raise Unreadable(f"takes {told.decoded_bytes >> 30} GiB when it is read, and this host has {memory >> 30}")
        return _Seen(sha256_of(file.path), told)
    except Unreadable as error:
        return f"{file.where}: {file.written} {error}"
    except OSError as error:
        return f"{file.where}: {file.written} cannot be read ({error.strerror or error}); check the path"


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise UserError("\n       ".join(problems[:_SHOWN]) + more)


def _input_file(file: NamedFile, seen: _Seen) -> InputFile:
    kind = seen.probe.kind
    form, in_list = form_of(file, kind)
    tensor = tensor_of(file, seen.probe) if kind is Kind.tensors else ""
    chosen = {Form.picture: file.mode, Form.sound: not file.batch}
    if (file.tensor and not tensor) or any(value and one is not form for one, value in chosen.items()):
        is_kind = f"{file.where}: {file.written} is {kind.value}"
        raise UserError(f"{is_kind}; tensor is for files of several tensors, mode for pictures, batch for sound")
    shape = seen.probe.tensors[tensor] if tensor else seen.probe.shape
    if form is Form.picture:
        shape = shape[:2]  # of an animation, its first
    return InputFile(
        file.written, file.path.absolute(), form, seen.sha256, shape, in_list, tensor, file.mode, file.batch
    )
