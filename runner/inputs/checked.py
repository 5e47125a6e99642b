"""The files that a job names, each looked at once by the ranks together: whole, of a kind that is taken, hashed."""

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import UserError
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
    first = {file.path: file for file in reversed(files)}
    on_all_ranks(lambda: _refuse(_missing(first.values())), group)
    paths = sorted(first)
    mine = paths[rank_in(group) :: size_of(group)]
    seen: dict[Path, _Seen] = {}
    for part in gather(on_all_ranks(lambda: _look_at([first[path] for path in mine]), group), group):
        seen |= part

    def change(leaf: Any) -> Any:
        return _input_file(leaf, seen[leaf.path]) if isinstance(leaf, NamedFile) else leaf

    return [mapped(value, change) for value in values]  # the same on all ranks, errors too


def sha256_of(path: Path) -> str:
    """Of the content, a piece at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _missing(files: Iterable[NamedFile]) -> list[str]:
    return [f"{file.where}: {problem}" for file in files if (problem := _why_no_file(file)) is not None]


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
    form = _form(file, seen.probe.kind)
    tensor, shape = "", seen.probe.shape
    if form is Form.tensor and seen.probe.kind is Kind.tensors:
        tensor = _tensor(file, list(seen.probe.tensors))
        shape = seen.probe.tensors[tensor]
    if form in (Form.picture, Form.pictures):
        shape = shape[:2]
    if (file.tensor and not tensor) or (file.mode and form not in (Form.picture, Form.pictures)):
        is_kind = f"{file.where}: {file.written} is {seen.probe.kind.value}"
        raise UserError(f"{is_kind}; `tensor` is for files of several tensors, `mode` for pictures")
    return InputFile(file.written, file.path.absolute(), form, seen.sha256, shape, tensor, file.mode)


def _form(file: NamedFile, kind: Kind) -> Form:
    """What the argument takes of what the file holds. An annotation that says only `tensor` is not to be believed:
    diffusers writes it where pictures are taken too, or alone."""
    takes = file.takes
    told = takes.is_known and takes.is_file
    only_lists = told and takes.has_pictures and not takes.picture
    if kind is Kind.animation:
        kind = Kind.video if only_lists or "video" in file.name else Kind.picture
    if kind is Kind.picture:
        return Form.pictures if only_lists else Form.picture
    if kind is Kind.video and (not told or takes.item is not None or takes.tensor):
        return Form.frames
    if kind is Kind.sound and (not told or not takes.has_pictures):
        return Form.sound
    if kind is Kind.array and (not told or takes.array or takes.tensor):
        return Form.array if not told or takes.array else Form.tensor
    if kind is Kind.tensors and (not told or takes.tensor):
        return Form.tensor
    raise UserError(f"{file.where}: {file.written} is {kind.value}, but {file.name} takes {takes.words()}")


def _tensor(file: NamedFile, names: Sequence[str]) -> str:
    """The one that is asked for; else the only one; else that of the argument's own name."""
    if file.tensor in names:
        return file.tensor
    if not file.tensor and len(names) == 1:
        return names[0]
    if not file.tensor and file.name in names:
        return file.name
    known = ", ".join(names[:20])
    raise UserError(
        f"{file.where}: {file.written} holds {known}; say which, {{file: {file.written}, tensor: {names[0]}}}"
    )
