"""Which of a folder's files are in the page cache, and how they get in and out of it."""

import os
from collections.abc import Iterable
from pathlib import Path

_CHUNK = 2**20


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def prepare(state: str, files: Iterable[Path]) -> None:
    """`state`: "cold" or "warm"."""
    (evict if state == "cold" else warm)(files)


def evict(files: Iterable[Path]) -> None:
    """Drop the files' own pages: what others keep in the page cache stays, and root is not needed."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(files: Iterable[Path]) -> None:
    chunk = bytearray(_CHUNK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(chunk):
                pass


def flush(files: Iterable[Path]) -> None:
    """Pages that are not on disk yet cannot be dropped."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
