"""One job an output folder: a lock that a dead job does not hold."""

import errno
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from runner.errors import JobFault, UserError
from runner.output.folder import Folder
from runner.output.write import read_json


@dataclass(frozen=True)
class Holder:
    """The run that has a folder, for the job that is refused, and for whoever looks at the folder."""

    run: str
    host: str
    pid: int
    since: str
    slurm_job: str | None = None

    @classmethod
    def this_run(cls) -> "Holder":
        run = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(run, socket.gethostname(), os.getpid(), since, os.environ.get("SLURM_JOB_ID"))

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        job = f", Slurm job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.pid} on {self.host} since {self.since}{job}"


class LockLost(JobFault):
    """The lock's file was removed or replaced: another job may have the folder now."""


class Lock:
    """The lock that this process holds on a folder."""

    def __init__(self, folder: Folder, file: int) -> None:
        self._folder, self._file = folder, file

    def check(self) -> None:
        """Raise LockLost where the file we hold is no longer the one that is there, which a second job may hold."""
        ours = os.fstat(self._file)
        try:
            there = os.stat(self._folder.lock, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            raise LockLost(
                f"{self._folder.lock} was removed or replaced while this job ran: another job may be writing"
            )


@contextmanager
def held(folder: Folder, holder: Holder, *, lock: bool = True, wait: float = 0.0) -> Iterator[Lock]:
    """Hold `folder` for this process. The kernel lets go when the process ends, however it ends; the file stays.

    NFS (v4, or v3 with lockd) passes flock on to the server, for all clients, where a lost node's lock goes only when
    its lease ends: hence `wait`, in seconds. Lustre has it when mounted with `flock`. Raises UserError: another job
    holds it (who is said), or the file system has no locks.
    """
    file = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        if lock:
            _lock(file, folder, wait)
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder.to_json()).encode() + b"\n", 0)
        yield Lock(folder, file)
    finally:
        os.close(file)


def holder_of(folder: Folder) -> Holder | None:
    """Who took the folder last; None when nobody has said."""
    try:
        return Holder(**read_json(folder.lock))
    except (TypeError, OSError):
        return None


def _lock(file: int, folder: Folder, wait: float) -> None:
    deadline = time.monotonic() + wait
    while not _locks(file, folder):
        if time.monotonic() > deadline:
            who = holder_of(folder) or "another job, which has not said yet who it is"
            raise UserError(f"job.output: {folder.path} is in use by {who}; wait for it, or name another folder")
        time.sleep(1)


def _locks(file: int, folder: Folder) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise UserError(
            f"job.output: the file system of {folder.path} has no locks ({error.strerror}); mount it with them "
            "(Lustre: -o flock), or say job.lock=false and see to it that no other job writes there"
        ) from error
    return True
