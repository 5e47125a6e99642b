"""The intervals that ranks wrote: read without torch, while the job runs or after it died."""

from collections.abc import Sequence
from pathlib import Path

from runner.output.folder import Folder
from runner.output.journal import Journal
from runner.trace.interval import Head, Interval


def read_intervals(path: Path) -> tuple[Head | None, list[Interval]]:
    """What a rank's file holds; what is cut short in it is left out."""
    lines, _ = Journal(path).lines()
    head = Head.from_json(lines[0]) if lines else None
    return head, [one for line in lines if (one := Interval.from_json(line)) is not None]


def read_ranks(folder: Folder) -> dict[int, Sequence[Interval]]:
    """Of all ranks whose files are there, by their numbers."""
    found = [read_intervals(path) for path in sorted(folder.profile.glob("rank*.intervals.jsonl"))]
    return dict(sorted((head.rank, intervals) for head, intervals in found if head is not None))
