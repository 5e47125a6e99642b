"""What each rank but rank 0 has finished, in a file of its own, until rank 0 has its lines in the folder's journals.

[Note: a file for each rank] A picture that is on the disk must not be made again, so its line is on the disk as soon as
it is, and not when the slowest rank of the wave is done. Only rank 0 writes the journals: on a network file system two
nodes that append to one file overwrite each other's lines. A file that one rank alone appends to needs no message, no
answer and no thread, and a run that dies leaves it to the next one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.output.journal import Journal
from runner.output.lines import Failure, ManifestLine


@dataclass
class Results:
    made: list[ManifestLine] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    def add(self, other: "Results") -> None:
        self.made += other.made
        self.failed += other.failed

    def __len__(self) -> int:
        return len(self.made) + len(self.failed)


class RankResults:
    """The file of one rank: it appends, and rank 0 reads what is new."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._read = 0  # bytes

    def append(self, made: Iterable[ManifestLine], failed: Iterable[Failure]) -> None:
        """On the disk when this returns."""
        lines: list[dict[str, Any]] = [{"made": line.to_json()} for line in made]
        self._journal.append([*lines, *({"failed": failure.to_json()} for failure in failed)])

    def news(self) -> Results:
        """The whole lines that have come since the last call."""
        lines, self._read = self._journal.lines_from(self._read)
        made = [ManifestLine.from_json(line["made"]) for line in lines if isinstance(line.get("made"), dict)]
        failed = [Failure.from_json(line["failed"]) for line in lines if isinstance(line.get("failed"), dict)]
        return Results([line for line in made if line], [failure for failure in failed if failure])
