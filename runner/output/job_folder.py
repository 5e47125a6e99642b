"""The output folder of a running job: taken by one job at a time, and holding one recipe."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from runner.config import JobConfig
from runner.errors import UserError
from runner.output.folder import Folder, folders_for
from runner.output.lock import Holder, Lock, held
from runner.output.manifest import Manifest, State
from runner.output.recipe import choose_folder, keep_recipe
from runner.output.run_file import RunFile
from runner.request import parse_part
from runner.world import World


@dataclass(frozen=True)
class JobFolder:
    """On every rank: where results go and what was there already. Only rank 0 writes the manifest and run.json."""

    files: Folder
    state: State
    recipe: Mapping[str, Any]
    manifest: Manifest
    run_file: RunFile
    lock: Lock | None  # on rank 0

    def check(self) -> None:
        """Raise LockLost on rank 0 where another job may have come into the folder."""
        if self.lock is not None:
            self.lock.check()


def settle_recipe(folder: JobFolder) -> None:
    """On rank 0, when the job is sound: the folder keeps its recipe, and its run.json tells of this run."""
    keep_recipe(folder.files, folder.recipe)
    folder.run_file.write({"state": "running"})


@contextmanager
def taken(job: JobConfig, recipe: Mapping[str, Any], world: World) -> Iterator[JobFolder]:
    """Choose, lock and mend the job's folder. Collective.

    Raises UserError on every rank: it cannot be written, another job holds it, another recipe filled it.
    """
    with ExitStack() as stack:
        locks: list[Lock | None] = []
        taking = world.agreed(lambda: _take(job, recipe, stack, locks) if world.rank == 0 else None)
        folder, holder, state = world.from_rank_0(taking)
        world.agreed(lambda: _check_shared(folder, holder))
        run_file = RunFile(folder, holder, Path(job.state_file) if job.state_file else None)
        yield JobFolder(folder, state, recipe, Manifest(folder, world.rank), run_file, *(locks or [None]))


def _check_state_file(file: Path) -> None:
    """It is written when the job ends, however it ends: too late to find out that it cannot be."""
    try:
        with TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise UserError(f"job.state_file: cannot write to {file.parent}: {error.strerror or error}") from error
    if file.is_dir():
        raise UserError(f"job.state_file: {file} is a folder; name a file")


def _take(
    job: JobConfig, recipe: Mapping[str, Any], stack: ExitStack, locks: list[Lock | None]
) -> tuple[Folder, Holder, State]:
    output, holder = Path(job.output), Holder.this_run()
    if job.state_file is not None:
        _check_state_file(Path(job.state_file))
    try:
        folders = map(_without_links, folders_for(output, parse_part(job.part)))
        folder = choose_folder(folders, recipe, job.on_change)
        folder.images.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder.images):
            pass
        lock = stack.enter_context(held(folder, holder, lock=job.lock, wait=job.lock_wait_seconds))
        locks.append(lock if job.lock else None)
        # Two jobs that chose at the same time: the recipe may have come with the one that was first.
        choose_folder(iter([folder]), recipe, job.on_change)
        return folder, holder, Manifest(folder).recover()
    except OSError as error:
        raise UserError(f"job.output: cannot write to {output}: {error.strerror or error}") from error


def _without_links(folder: Folder) -> Folder:
    folder.refuse_links()
    return folder


def _check_shared(folder: Folder, holder: Holder) -> None:
    """Every rank writes its pictures into this folder, so each node must see the one that rank 0 took."""
    if not folder.images.is_dir():
        raise UserError(
            f"job.output: {folder.path} is on {holder.host} but not on {socket.gethostname()}; "
            "name a folder that all nodes share"
        )
