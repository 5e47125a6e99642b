"""The memory of an output folder: what is made, what was tried, and what is left.

manifest.jsonl   a line for each finished request, written after its picture is whole on the disk
failures.jsonl   a line for each failed try, with its reason
attempts.jsonl   a line before each wave: a request that ends the job without a word has been tried too

Rank 0 reads and writes; the other ranks are told what it read, so that a slow network file system cannot show two ranks
two states. What they finish they write to a file each (rank_results.py), and rank 0 takes it from there.
"""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from runner.output.call_log import count_records
from runner.output.folder import Folder
from runner.output.journal import Journal, JsonObject
from runner.output.lines import Failure, ManifestLine, OutputFile
from runner.output.rank_results import RankResults, Results
from runner.output.turn_file import not_to_blame


@dataclass(frozen=True)
class State:
    """What a folder knows: the manifest line of each finished request, tries of each other, and its last failure."""

    finished: Mapping[str, ManifestLine] = field(default_factory=dict)
    attempts: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, Failure] = field(default_factory=dict)
    notes: Sequence[str] = ()  # what was repaired


class Manifest:
    """The folder's three journals. Ranks other than 0 write what they finish to a file of their own."""

    def __init__(self, folder: Folder, rank: int = 0) -> None:
        self.folder = folder
        self._writes = rank == 0
        self._finished, self._failures = Journal(folder.manifest), Journal(folder.failures)
        self._attempts = Journal(folder.attempts)
        self._own = RankResults(folder.results_of(rank))
        self._others: dict[Path, RankResults] = {}
        self._heard: set[str] = set()  # requests whose lines came from other ranks

    def recover(self) -> State:
        """What a run that takes the folder over finds, after mending it. Only under the folder's lock.

        Temporary files of a dead run go; so do damaged lines, and the lines whose file is missing, cut short or
        altered: those requests are made again. What its other ranks had finished comes into the journals. Of a group
        that was killed, only the request whose turn it was has been tried in vain.
        """
        others = self._news()
        self.withdraw(not_to_blame(self.folder.turns()))
        notes = [f"{len(stale)} temporary file(s) of a dead run removed"] if (stale := self._remove_stale()) else []
        objects, torn = self._finished.lines()
        lines = [line for line in map(ManifestLine.from_json, objects) if line is not None]
        torn += len(objects) - len(lines)
        lines += others.made
        kept = {line.id: line for line in lines if is_whole(self.folder.path, line)}
        if torn or others.made or len(kept) < len(lines):
            self._finished.rewrite(line.to_json() for line in kept.values())
        notes += [f"{torn} torn line(s) in {self._finished.path.name} removed"] if torn else []
        lost = {line.id for line in lines} - set(kept)
        notes += [f"{len(lost)} finished request(s) with files missing or damaged; made again"] if lost else []
        failures = [line for line in map(Failure.from_json, _mended(self._failures)) if line is not None]
        news = [failure for failure in others.failed if failure not in failures]  # a run may have died right here
        self._failures.append(failure.to_json() for failure in news)
        failures += news
        self._remove_others()
        return State(kept, self._tries(), {line.id: line for line in failures}, notes)

    def begin(self, ids: Sequence[str]) -> None:
        """Before a wave: its requests are being tried, from the calls on that their logs have."""
        if self._writes:
            calls = {id: number for id in ids if (number := count_records(self.folder.call_log(id)))}
            self._append(self._attempts, [{"started": list(ids)} | ({"calls": calls} if calls else {})])

    def withdraw(self, ids: Sequence[str]) -> None:
        """The try of these requests does not count: what ended it was not their doing."""
        self._append(self._attempts, [{"withdrawn": list(ids)}] if ids else [])

    def record(self, made: Iterable[ManifestLine], failed: Iterable[Failure], attempts: Mapping[str, int]) -> None:
        """What this rank finished, on the disk when this returns. `attempts`: tries of each request before this run."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        counted = [replace(failure, attempts=attempts.get(failure.id, 0) + 1, time=now) for failure in failed]
        if self._writes:
            self._write(Results(list(made), counted))
        else:
            self._own.append(made, counted)

    def collect(self) -> int:
        """On rank 0: take over what the other ranks have finished, as far as their files show it here. How many."""
        news = self._unheard(self._news()) if self._writes else Results()
        self._write(news)
        return len(news)

    def settle(self, made: Iterable[ManifestLine], failed: Iterable[Failure], attempts: Mapping[str, int]) -> None:
        """On rank 0: the other ranks have finished these, whether their files show it here yet or not."""
        if self._writes:
            self.collect()
            missing = self._unheard(Results(list(made), list(failed)))
            self.record(missing.made, missing.failed, attempts)

    def close(self) -> None:
        """On rank 0, when no rank writes any more and all they finished is settled."""
        if self._writes:
            self._remove_others()

    def _write(self, results: Results) -> None:
        self._finished.append(line.to_json() for line in results.made)
        self._failures.append(failure.to_json() for failure in results.failed)

    def _unheard(self, told: Results) -> Results:
        """What has not been told before; from now on it has."""
        made = [line for line in told.made if line.id not in self._heard]
        failed = [failure for failure in told.failed if failure.id not in self._heard]
        self._heard |= {line.id for line in (*made, *failed)}
        return Results(made, failed)

    def _news(self) -> Results:
        news = Results()
        for path in self.folder.results_of_ranks():
            news.add(self._others.setdefault(path, RankResults(path)).news())
        return news

    def _remove_others(self) -> None:
        for path in self.folder.results_of_ranks():
            path.unlink(missing_ok=True)
        self._others.clear()

    def _append(self, journal: Journal, lines: Iterable[JsonObject]) -> None:
        if self._writes:
            journal.append(lines)

    def _tries(self) -> dict[str, int]:
        """How often each request was tried in vain. A try that got on, as the log of its calls tells, was not in vain:
        a clip that outlives each node that works on it is made in the end."""
        tries: dict[str, list[_Try]] = {}
        for line in _mended(self._attempts):
            calls = line.get("calls")
            for id in _ids(line.get("started")):
                tries.setdefault(id, []).append(_Try(calls.get(id, 0) if isinstance(calls, dict) else 0))
            for id in set(_ids(line.get("withdrawn"))) & set(tries):
                tries[id][-1] = _Try(tries[id][-1].calls, counts=False)  # ranks that are stopped may each withdraw it
        now = {log.stem: _Try(count_records(log)) for log in self.folder.calls.glob("*.log")}
        return {id: _in_vain([*begun, now.get(id, _Try(0))]) for id, begun in tries.items()}

    def _remove_stale(self) -> list[Path]:
        stale = self.folder.temporary()
        for file in stale:
            file.unlink(missing_ok=True)
        return stale


def is_whole(folder: Path, line: ManifestLine) -> bool:
    """Whether the line's files are those that were written: as git does, by size and time, and by content if in doubt.

    A file of the right size and time is trusted unread, so that ten thousand cost no more than ten thousand `stat`s; a
    copied folder (all times differ) is read once at each start.
    """
    return all(_is_written(folder / file.file, file) for file in line.all_files)


def _is_written(path: Path, file: OutputFile) -> bool:
    try:
        found = path.stat()
        if found.st_size != file.bytes:
            return False
        return found.st_mtime_ns == file.mtime_ns or file_hash(path) == file.file_sha256
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return False


def file_facts(path: Path) -> dict[str, Any]:
    """What `is_whole` compares. Taken by the rank that wrote the file."""
    found = path.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "file_sha256": file_hash(path)}


def file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def free_stems(stems: Iterable[tuple[str, str]], finished: Mapping[str, ManifestLine]) -> list[str]:
    """For each (id, stem) a stem that no finished request of another id has: prompt lists change, pictures stay.

    A stem has no dot: what comes after one tells the files of a request apart.
    """
    taken = {Path(line.file).name.partition(".")[0]: id for id, line in finished.items()}
    return [stem if taken.get(stem, id) == id else f"{stem}-{id[:8]}" for id, stem in stems]


@dataclass(frozen=True)
class _Try:
    """Of a request: how many calls its log had when it began, and whether it counts."""

    calls: int
    counts: bool = True


def _in_vain(tries: Sequence[_Try]) -> int:
    """How many count after which the log had no more calls; the last tells of now."""
    return sum(one.counts and following.calls <= one.calls for one, following in pairwise(tries))


def _mended(journal: Journal) -> list[dict[str, Any]]:
    lines, torn = journal.lines()
    if torn:
        journal.rewrite(lines)
    return lines


def _ids(value: Any) -> list[str]:
    return [id for id in value if isinstance(id, str)] if isinstance(value, list) else []
