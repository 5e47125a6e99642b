"""What ended a job that could not go on: who, where, doing what, and why."""

import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from offload import StoreError
from runner.calls.boundary import Timings
from runner.calls.lockstep import TornApart
from weights.agreement import this_node

DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE})


@dataclass
class Activity:
    """What this rank is doing, for its last words. The main thread writes it, the watch reads it."""

    rank: int
    stage: str = "start"
    request: str | None = None  # id and prompt, while one is being made
    wave: list[str] = field(default_factory=list)  # ids of the wave in progress, of all ranks
    pardoned: bool = False  # the wave's try does not count: the job is asked to stop
    timings: Timings | None = None

    def status(self) -> dict[str, Any]:
        stage, component = self.stage, None
        if self.request is not None and self.timings is not None and self.timings.current is not None:
            stage, component = self.timings.current
        who = {"rank": self.rank, "host": socket.gethostname(), "pid": os.getpid(), "node": this_node()}
        return {**who, "stage": stage, "component": component, "request": self.request}

    def progress(self) -> tuple[Any, ...]:
        """Changes whenever this rank gets on."""
        calls = sum(self.timings.calls.values()) if self.timings is not None else 0
        return self.stage, self.request, calls


@dataclass(frozen=True)
class Fault:
    """The last line of a job, and `fault` in its run.json."""

    rank: int
    host: str
    stage: str
    component: str | None
    request: str | None
    cause: str
    by_request: bool  # whether the request may have brought it about: then the try counts against it

    @classmethod
    def of(cls, status: Mapping[str, Any], cause: str, *, by_request: bool) -> "Fault":
        return cls(
            status.get("rank", -1),
            status.get("host", "?"),
            status.get("stage", "start"),
            status.get("component"),
            status.get("request"),
            cause,
            by_request,
        )

    def line(self) -> str:
        where = self.stage if self.component is None else f"{self.stage}/{self.component}"
        request = f", request {self.request}" if self.request else ""
        return f"fault: rank {self.rank} on {self.host}, {where}{request}: {self.cause}"


def fault_of(error: BaseException, status: Mapping[str, Any]) -> Fault:
    """The fault that an exception in the main thread is."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return Fault.of(status, text[:500], by_request=not (is_disk(error) or isinstance(error, StoreError)))


def is_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in DISK


def ends_the_job(error: BaseException) -> bool:
    """What is not one request's failure: the next request would meet it too, or the other ranks are hit already."""
    return is_disk(error) or isinstance(
        error, MemoryError | torch.OutOfMemoryError | dist.DistError | StoreError | TornApart
    )


def may_be_an_echo(error: BaseException) -> bool:
    """Whether another rank may be the cause: gloo reports a lost peer and a timeout as a plain RuntimeError."""
    return isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
