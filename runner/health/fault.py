"""What ended a job that could not go on: who, where, doing what, and why."""

import errno
import os
import socket
from dataclasses import dataclass

import torch

from runner.errors import JobFault
from runner.progress import Progress
from weights.agreement import this_node
from weights.weight_file import StoreError

DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE})


@dataclass(frozen=True)
class Status:
    """Where a rank is, and for how many seconds it has not got on, as its heartbeats tell."""

    rank: int = -1
    host: str = "?"
    pid: int = 0
    node: str = ""
    stage: str = "start"
    component: str | None = None
    request: str | None = None
    prompt: str | None = None
    standstill: float = 0.0

    @classmethod
    def of(cls, progress: Progress, standstill: float = 0.0) -> "Status":
        """Of this rank."""
        who = (progress.rank, socket.gethostname(), os.getpid(), this_node())
        request = progress.request
        prompt = None if request is None else request.title[:60]
        id = None if request is None else request.id
        return cls(*who, progress.stage, progress.component, id, prompt, standstill)


@dataclass(frozen=True)
class Fault:
    """The last line of a job, and `fault` in its run.json."""

    rank: int
    host: str
    stage: str
    component: str | None
    request: str | None
    prompt: str | None
    cause: str
    by_request: bool  # whether the request may have brought it about: then the try counts against it

    @classmethod
    def at(cls, status: Status, cause: str, *, by_request: bool) -> "Fault":
        place = (status.rank, status.host, status.stage, status.component, status.request, status.prompt)
        return cls(*place, cause, by_request)

    def line(self) -> str:
        where = self.stage if self.component is None else f"{self.stage}/{self.component}"
        request = f", request {self.request} {self.prompt!r}" if self.request else ""
        return f"fault: rank {self.rank} on {self.host}, {where}{request}: {self.cause}"


def fault_of(error: BaseException, status: Status) -> Fault:
    """The fault that an exception in the main thread is."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return Fault.at(status, text[:500], by_request=not (is_disk(error) or isinstance(error, StoreError | JobFault)))


def is_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in DISK


def is_device_failure(error: BaseException) -> bool:
    """The device, or a library on it, has failed: what it is asked for next would fail too."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    text = str(error)
    return isinstance(error, torch.AcceleratorError) or any(
        mark in text for mark in ("CUBLAS_STATUS_", "CUDNN_STATUS_", "CUDA error")
    )


def may_come_from_another_rank(error: BaseException) -> bool:
    """gloo reports a lost peer and a timeout as a plain RuntimeError."""
    return isinstance(error, RuntimeError) and not (
        isinstance(error, torch.OutOfMemoryError) or is_device_failure(error)
    )
