"""An arm in a process of its own, which serves steps on request: what the process holds is what the arm holds."""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import diffusers
import torch

from bench import page_cache
from bench.offload_arms import Arm, build, denoise, transfer
from offload import offloader_of

_PATIENCE_S = 600


@dataclass(frozen=True)
class Job:
    """`what`: "steps" of the denoise loop, or "transfer": passes over the streamed weights alone."""

    what: str
    count: int
    state: str  # of the page cache: "cold" or "warm"
    tokens: int


@dataclass(frozen=True)
class Sample:
    """Per step. `bytes_read` came from the disk, `bytes_asked` through system calls; `processor` is seconds of all
    threads, `main_thread` of the one that computes, `others` of the machine's other processes."""

    seconds: float
    processor: float
    main_thread: float
    others: float
    bytes_read: float
    bytes_asked: float


@dataclass(frozen=True)
class Peak:
    """Bytes above what the process held before it had a model."""

    anonymous: int
    mapped: int

    def over(self, other: Self) -> Self:
        return type(self)(max(self.anonymous, other.anonymous), max(self.mapped, other.mapped))


class Server:
    """A process that has built one arm, with the checkpoint's pages in `state`: our store notes how it finds them."""

    def __init__(self, name: str, state: str, folder: Path, own: Path, num_threads: int, window: int) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, name, state, folder, own, num_threads, window), daemon=True
        )
        self._process.start()
        theirs.close()
        self._before: list[int] = self._answer()
        self._answer()  # built

    def run(self, job: Job, watch_every_s: float) -> tuple[Sample, Peak, torch.Tensor | None]:
        """The sample, the memory at its peak, and the latents of the last step. Watching costs a little time."""
        self._connection.send(job)
        peaks = self._memory()
        while not self._connection.poll(watch_every_s):
            peaks = [max(pair) for pair in zip(peaks, self._memory(), strict=True)]
        sample, latents = self._answer()
        return sample, Peak(*(peak - before for peak, before in zip(peaks, self._before, strict=True))), latents

    def close(self) -> None:
        self._connection.close()
        self._process.join(_PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _memory(self) -> list[int]:
        return memory(f"/proc/{self._process.pid}/status")

    def _answer(self) -> Any:
        if not self._connection.poll(_PATIENCE_S):
            raise TimeoutError("an arm does not answer")
        return self._connection.recv()


def memory(status: str = "/proc/self/status") -> list[int]:
    """Bytes of anonymous memory, and of mapped files and shared memory."""
    lines = (line.split() for line in Path(status).read_text().splitlines())
    fields = {line[0]: int(line[1]) * 1024 for line in lines if line and line[0].startswith("Rss")}
    return [fields["RssAnon:"], fields["RssFile:"] + fields["RssShmem:"]]


def _serve(
    connection: Connection, name: str, state: str, folder: Path, own: Path, num_threads: int, window: int
) -> None:
    torch.set_num_threads(num_threads)
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    connection.send(memory())
    page_cache.prepare(state, sorted(folder.glob("*.safetensors")))
    arm = build(name, folder, own, window)
    connection.send(None)
    with torch.no_grad():
        while True:
            try:
                job = connection.recv()
            except EOFError:
                return
            connection.send(_run(arm, job))


def _run(arm: Arm, job: Job) -> tuple[Sample, torch.Tensor | None]:
    """All of a stage is on the clock, so that nothing arrives for free; making the page cache cold or warm is not.

    Where pages are dropped after they were read, as ours are, those of the steps after the first need not be dropped.
    """
    offloaded, latents = offloader_of(arm.model), None
    page_cache.prepare(job.state, arm.files)
    clock = _Clock()
    with clock:
        if job.what == "steps":
            arm.begin()
            steps: Iterator[torch.Tensor | None] = denoise(arm.model, job.tokens, job.count)
        else:
            assert offloaded is not None
            steps = transfer(offloaded, job.count)
    for step in range(job.count):
        if job.state == "cold" and step and (offloaded is None or job.what == "transfer"):
            page_cache.evict(arm.files)
        with clock:
            latents = next(steps)
    with clock:
        arm.end()
    return clock.sample(job.count), latents


class _Clock:
    """Adds up what happens inside of it."""

    def __init__(self) -> None:
        self._totals = [0.0] * 6

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *_: object) -> None:
        spent = (now - then for now, then in zip(self._now(), self._start, strict=True))
        self._totals = [total + more for total, more in zip(self._totals, spent, strict=True)]

    def sample(self, count: int) -> Sample:
        return Sample(*(total / count for total in self._totals))

    @staticmethod
    def _now() -> list[float]:
        counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        read, asked = float(counts["read_bytes"]), float(counts["rchar"])
        own = time.process_time()
        return [time.perf_counter(), own, time.thread_time(), busy_seconds() - own, read, asked]


def busy_seconds() -> float:
    """Of all cores together since the start, in the kernel's ticks. Waiting for a disk is idle."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
