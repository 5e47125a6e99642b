"""The memory of an output folder: what is made, what was tried, and what is left.

manifest.jsonl   a line for each finished request, written after its picture is whole on the disk
failures.jsonl   a line for each failed try, with its reason
attempts.jsonl   a line before each wave: whoever ends the job without a word has been tried too

Rank 0 reads and writes; the other ranks are told what it read, so that a slow network file system cannot show two ranks
two states.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.output.journal import Journal, Line

IMAGES = "images"


@dataclass(frozen=True)
class State:
    """What a folder knows: the manifest line of each finished request, tries of each other, and its last failure."""

    finished: Mapping[str, Line] = field(default_factory=dict)
    attempts: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, Line] = field(default_factory=dict)
    notes: Sequence[str] = ()  # what was repaired


class Manifest:
    """The folder's three journals."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished = Journal(folder / "manifest.jsonl")
        self.failures = Journal(folder / "failures.jsonl")
        self.attempts = Journal(folder / "attempts.jsonl")

    def recover(self) -> State:
        """What a run that takes the folder over finds, after mending it. Only under the folder's lock.

        Temporary files of a dead run go; so do torn lines, and the lines whose file is missing, cut short or altered:
        those requests are made again.
        """
        notes = [f"{len(stale)} temporary file(s) of a dead run removed"] if (stale := self._remove_stale()) else []
        lines, torn = self.finished.lines()
        kept = {str(line.get("id")): line for line in lines if is_whole(self.folder, line)}
        if torn or len(kept) < len(lines):
            self.finished.rewrite(kept.values())
        notes += [f"{torn} torn line(s) in {self.finished.path.name} removed"] if torn else []
        lost = {str(line.get("id")) for line in lines} - set(kept)
        notes += [f"{len(lost)} finished file(s) missing or damaged; made again"] if lost else []
        failures = self._mended(self.failures)
        attempts: Counter[str] = Counter()
        for line in self._mended(self.attempts):
            attempts.update(line.get("started", ()))
            attempts.subtract(line.get("withdrawn", ()))
        return State(kept, dict(attempts), {line["id"]: line for line in failures if "id" in line}, notes)

    def begin(self, ids: Sequence[str]) -> None:
        """Before a wave: its requests are being tried."""
        self.attempts.append([{"started": list(ids)}])

    def withdraw(self, ids: Sequence[str]) -> None:
        """The try of these requests does not count: what ended it was not their doing."""
        if ids:
            self.attempts.append([{"withdrawn": list(ids)}])

    def _mended(self, journal: Journal) -> list[dict[str, Any]]:
        lines, torn = journal.lines()
        if torn:
            journal.rewrite(lines)
        return lines

    def _remove_stale(self) -> list[Path]:
        stale = [file for part in (self.folder, self.folder / IMAGES) for file in part.glob(".*.tmp*")]
        for file in stale:
            file.unlink(missing_ok=True)
        return stale


def is_whole(folder: Path, line: Line) -> bool:
    """Whether the line's file is the one that was written: as git does, by size and time, and by content if in doubt.

    A file of the right size and time is trusted unread, so that ten thousand cost no more than ten thousand `stat`s; a
    copied folder (all times differ) is read once at each start.
    """
    try:
        path = folder / line["file"]
        found = path.stat()
        if found.st_size != line["bytes"]:
            return False
        return found.st_mtime_ns == line["mtime_ns"] or file_hash(path) == line["file_sha256"]
    except (OSError, KeyError, TypeError):
        return False


def file_facts(path: Path) -> dict[str, Any]:
    """What `is_whole` compares. Taken by the rank that wrote the file."""
    found = path.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "file_sha256": file_hash(path)}


def file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def free_stems(stems: Iterable[tuple[str, str]], finished: Mapping[str, Line]) -> list[str]:
    """For each (id, stem) a stem that no finished request of another id has: prompt lists change, pictures stay."""
    taken = {Path(str(line["file"])).stem: id for id, line in finished.items()}
    return [stem if taken.get(stem, id) == id else f"{stem}-{id[:8]}" for id, stem in stems]
