"""One job an output folder: a lock that a dead job does not hold."""

import errno
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.errors import UserError
from runner.output.write import read_json

NAME = "job.lock"


def new_holder() -> dict[str, Any]:
    """This run, for the job that is refused, and for whoever looks at the folder."""
    job = os.environ.get("SLURM_JOB_ID")
    run = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    who = {"run": run, "host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    return {**who, "slurm_job": job} if job else who


@contextmanager
def held(folder: Path, holder: Mapping[str, Any], *, lock: bool = True, wait: float = 0.0) -> Iterator[None]:
    """Hold `folder` for this process. The kernel lets go when the process ends, however it ends; the file stays.

    NFS (v4, or v3 with lockd) passes flock on to the server, for all clients, where a lost node's lock goes only when
    its lease ends: hence `wait`, in seconds. Lustre has it when mounted with `flock`. Raises UserError: another job
    holds it (who is said), or the file system has no locks.
    """
    file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if lock:
            _lock(file, folder, wait)
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode() + b"\n", 0)
        yield
    finally:
        os.close(file)


def holder_of(folder: Path) -> dict[str, Any]:
    """Who took the folder last; empty when nobody has said."""
    return read_json(folder / NAME)


def _lock(file: int, folder: Path, wait: float) -> None:
    deadline = time.monotonic() + wait
    while not _locks(file, folder):
        if time.monotonic() > deadline:
            who = _described(holder_of(folder))
            raise UserError(f"job.output: {folder} is in use by {who}; wait for it, or name another folder")
        time.sleep(1)


def _locks(file: int, folder: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise UserError(
            f"job.output: the file system of {folder} has no locks ({error.strerror}); mount it with them "
            "(Lustre: -o flock), or say job.lock=false and see to it that no other job writes there"
        ) from error
    return True


def _described(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "another job, which has not said yet who it is"
    job = f", Slurm job {holder['slurm_job']}" if "slurm_job" in holder else ""
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}{job}"
