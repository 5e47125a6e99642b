"""The output folder of a running job: taken by one job at a time, and holding one recipe."""

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from runner.config import JobConfig
from runner.errors import UserError
from runner.output.journal import Line
from runner.output.lock import held, new_holder
from runner.output.manifest import IMAGES, Manifest, State
from runner.output.recipe import choose_folder, keep_recipe
from runner.output.run_file import RunFile
from runner.request import Part, parse_part
from runner.world import World


@dataclass(frozen=True)
class Folder:
    """On every rank: where results go and what was there already. Only rank 0 writes the journals."""

    path: Path
    state: State
    recipe: Mapping[str, Any]
    journals: Manifest | None
    run_file: RunFile

    def open_books(self) -> None:
        """The job is sound, and about to begin: the folder's recipe is settled, and its run.json tells of this run."""
        if self.journals is not None:
            keep_recipe(self.path, self.recipe)
            self.run_file.write({"state": "running"})

    def begin(self, ids: Sequence[str]) -> None:
        """A wave of these requests begins."""
        if self.journals is not None:
            self.journals.begin(ids)

    def record(self, lines: Sequence[Line | None], failures: Sequence[Line | None]) -> None:
        """What became of the wave; on the disk before the next begins."""
        if self.journals is not None:
            self.journals.finished.append(line for line in lines if line)
            self.journals.failures.append(self._tried(failure) for failure in failures if failure)

    def withdraw(self, ids: Sequence[str]) -> None:
        """These requests of the wave are to be made again, and were not at fault."""
        if self.journals is not None:
            self.journals.withdraw(ids)

    def _tried(self, failure: Line) -> Line:
        attempts = self.state.attempts.get(failure["id"], 0) + 1
        return {**failure, "attempts": attempts, "time": time.strftime("%Y-%m-%dT%H:%M:%S")}


@contextmanager
def taken(job: JobConfig, recipe: Mapping[str, Any], world: World) -> Iterator[Folder]:
    """Choose, lock and mend the job's folder. Collective.

    Raises UserError on every rank: it cannot be written, another job holds it, another recipe filled it.
    """
    with ExitStack() as stack:
        taking = world.agreed(lambda: _take(job, recipe, stack) if world.rank == 0 else None)
        path, holder, state = world.from_rank_0(taking)
        world.agreed(lambda: _check_shared(path, holder))
        run_file = RunFile(path, holder, Path(job.state_file) if job.state_file else None)
        yield Folder(path, state, recipe, Manifest(path) if world.rank == 0 else None, run_file)


def _take(job: JobConfig, recipe: Mapping[str, Any], stack: ExitStack) -> tuple[Path, dict[str, Any], State]:
    output, holder = Path(job.output), new_holder()
    try:
        path = choose_folder(folders_for(output, parse_part(job.part)), recipe, job.on_change)
        (path / IMAGES).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path / IMAGES):
            pass
        stack.enter_context(held(path, holder, lock=job.lock, wait=job.lock_wait_seconds))
        # Two jobs that chose at the same time: the recipe may have come with the one that was first.
        choose_folder(iter([path]), recipe, job.on_change)
        return path, holder, Manifest(path).recover()
    except OSError as error:
        raise UserError(f"job.output: cannot write to {output}: {error.strerror or error}") from error


def folders_for(output: Path, part: Part) -> Iterator[Path]:
    """Where the part's results go: under `output`, or under output-2, output-3, ... for whom `output` does not fit.

    Raises UserError when `output` was split otherwise: each split would make the requests of the other once more.
    """
    others = {folder.name.rpartition("-of-")[2] for folder in output.glob("part-*-of-*")} - {str(part.size)}
    if (output / "manifest.jsonl").exists() and part.size > 1:
        others.add("1")
    if others:
        raise UserError(
            f"job.part: {output} holds a job in {' or '.join(sorted(others))} part(s), not {part.size}; "
            "go on with as many, or name another job.output"
        )
    yield output / part.name
    for number in count(2):
        yield output.with_name(f"{output.name}-{number}") / part.name


def _check_shared(path: Path, holder: Mapping[str, Any]) -> None:
    """Every rank writes its pictures into this folder, so each node must see the one that rank 0 took."""
    if not (path / IMAGES).is_dir():
        raise UserError(
            f"job.output: {path} is on {holder['host']} but not on {socket.gethostname()}; "
            "name a folder that all nodes share"
        )
