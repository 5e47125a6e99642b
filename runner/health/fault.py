"""What ended a job that could not go on: who, where, doing what, and why."""

import errno
import os
import socket
from dataclasses import dataclass

import torch

from runner.errors import JobFault
from runner.health.memory import NONE, Memory
from runner.progress import Progress
from weights.agreement import this_node
from weights.weight_file import StoreError

DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE})


_STEPS = 16  # requests of a group whose steps a heartbeat tells: it has to fit into what a socket takes at once


@dataclass(frozen=True)
class Status:
    """Where a rank is, and for how many seconds it has not got on, as its heartbeats tell. `steps`: of each request in
    the making, how many are done, of how many; `made`, `failed`: requests in this run; bytes of memory at this moment.
    """

    rank: int = -1
    host: str = "?"
    pid: int = 0
    node: str = ""
    stage: str = "start"
    component: str | None = None
    request: str | None = None
    prompt: str | None = None
    standstill: float = 0.0
    steps: tuple[tuple[str, int, int], ...] = ()
    made: int = 0
    failed: int = 0
    host_bytes: int = 0
    device_bytes: int = 0

    @classmethod
    def of(cls, progress: Progress, standstill: float = 0.0, memory: Memory = NONE) -> "Status":
        """Of this rank."""
        request = progress.request
        return cls(
            rank=progress.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            node=this_node(),
            stage=progress.stage,
            component=progress.component,
            request=None if request is None else request.id,
            prompt=None if request is None else request.title[:60],
            standstill=standstill,
            steps=tuple((one, *count) for one, count in list(progress.steps.items())[:_STEPS]),
            made=progress.made,
            failed=progress.failed,
            host_bytes=memory.host_bytes,
            device_bytes=memory.device_bytes,
        )


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
