"""What a rank makes of its tasks, what it has written and recorded, and which errors are one request's."""

import socket
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from offload import StoreError
from runner.calls.finite import NotFinite, require_finite
from runner.calls.lockstep import PeerLeft, TornApart
from runner.config import JobConfig
from runner.errors import JobFault
from runner.groups.meter import Meter
from runner.health.fault import is_device_failure, is_disk
from runner.health.watch import Watch
from runner.job.call_logs import CallLogs, remove_logs_of
from runner.job.results import Failed, Made, Repeat, Result, Stopped, is_settled_by
from runner.job.waves import Task
from runner.job.writer import Writer
from runner.media.outputs import Outputs, fields_of
from runner.media.save import Writing, save, to_write
from runner.numerics import made_on
from runner.output.job_folder import JobFolder
from runner.output.lines import Failure, ManifestLine
from runner.output.turn_file import TurnFile
from runner.pipeline.pipeline import Pipeline
from runner.progress import At
from runner.request import Request
from runner.resume.replay import StoppedInside
from runner.rounds.round import ResultsDiffer
from runner.trace.interval import Lane


@dataclass(frozen=True)
class Making:
    """What all tasks are made with."""

    pipeline: Pipeline
    job: JobConfig
    folder: JobFolder
    logs: CallLogs | None
    watch: Watch
    writer: Writer


def make(tasks: Sequence[Task], making: Making, results: list[Result], meter: Meter | None) -> None:
    """Make tasks together. `results` is told at once of those with nothing to write, the writer has the others."""
    if len(tasks) > 1 or meter is not None:
        _make_group(tasks, making, results, meter)
    else:
        _make_one(tasks[0], making, results)
    if making.pipeline.replay is not None:
        making.pipeline.progress.note = str(making.pipeline.replay.kept)


def lines_of(results: Sequence[Result]) -> tuple[list[ManifestLine], list[Failure]]:
    """Of what was made, and of what failed."""
    made = [result.line for result in results if isinstance(result, Made)]
    return made, [result.failure for result in results if isinstance(result, Failed)]


def _record(result: Result, folder: JobFolder) -> None:
    """What this rank made, or what failed, as soon as it is over."""
    made, failed = lines_of([result])
    folder.manifest.record(made, failed, folder.state.attempts)
    # Other failures may have come after an hour of calls that are right, as of memory that the decoder lacked.
    wrong = [failure for failure in failed if failure.error == NotFinite.__name__]
    remove_logs_of(folder.files, [line.id for line in (*made, *wrong)])


def _make_one(task: Task, making: Making, results: list[Result]) -> None:
    start = perf_counter()
    resume = making.logs.open(task.request, is_filler=task.is_filler) if making.logs else None

    def outcome() -> Any:
        return making.pipeline(task.request, resume)

    _settle(task, outcome, making, results, lambda: perf_counter() - start)


def _make_group(tasks: Sequence[Task], making: Making, results: list[Result], meter: Meter | None) -> None:
    """Make several requests together; each is written as soon as its own call ends."""
    logs = making.logs
    resumes = [logs.open(task.request, is_filler=task.is_filler) if logs else None for task in tasks]

    def ended(index: int, outcome: Callable[[], Any], seconds: float) -> None:
        _settle(tasks[index], outcome, making, results, lambda: seconds, in_group=len(tasks) > 1)

    requests = [task.request for task in tasks]

    def time_left() -> float | None:  # the other ranks of a team leave together with its first
        return making.watch.time_left() if making.pipeline.world.team.is_first else None

    with _turns_noted(tasks, making):
        making.pipeline.make_together(requests, resumes, ended, time_left, meter)


@contextmanager
def _turns_noted(tasks: Sequence[Task], making: Making) -> Iterator[None]:
    """Should this rank be killed, the next run knows whose turn it was."""
    progress = making.pipeline.progress
    group = [task.request.id for task in tasks if not task.is_filler]
    file = TurnFile(making.folder.files.turn_of(progress.rank), group)
    progress.turns_to = lambda request: file.running(request.id)
    try:
        yield
    finally:
        progress.turns_to = None
        file.close()


def _settle(
    task: Task,
    outcome: Callable[[], Any],
    making: Making,
    results: list[Result],
    seconds: Callable[[], float],
    *,
    in_group: bool = False,
) -> None:
    """Make the request, or take what it gave, and have its files written. Filler work has no result."""
    found = _result(task, outcome, making, in_group=in_group)
    team, progress = making.pipeline.world.team, making.pipeline.progress
    progress.over(task.request.id, failed=isinstance(found, Failed) and team.is_first)
    if isinstance(found, Outputs):
        device = made_on(making.pipeline.world.device)  # another thread may count other threads of the CPU
        action = partial(_written, found, task.request, making, round(seconds(), 3), device)
        making.writer.write(task.request, action)
    elif found is not None:
        results.append(found)
        if is_settled_by(found, team):
            _record(found, making.folder)
    making.folder.manifest.collect()


def _result(
    task: Task, outcome: Callable[[], Any], making: Making, *, in_group: bool
) -> Outputs | Failed | Repeat | Stopped | None:
    """What there is to write of a request, or why there is nothing."""
    request, pipeline = task.request, making.pipeline
    try:
        made = outcome()
        if task.is_filler:
            return None
        for name, value in fields_of(made).items():  # pictures come from a decoder whose pixels were looked at
            require_finite(name, value)
        if not pipeline.world.team.is_first:
            return None  # the team's first rank has the same, and writes it
        return to_write(made, Writing(making.job, pipeline.stock))
    except StoppedInside as stop:
        return None if task.is_filler else Stopped(request, stop.calls)
    except PeerLeft as error:
        if task.is_filler:
            return None
        # Alone, a request has only its own repetitions beside it: out of step with itself, it cannot be made. Where a
        # call gave another result than the first of its kind, it can: no rank makes it for another any more.
        if not task.is_alone or isinstance(error, ResultsDiffer):
            return Repeat(request, error)
        return Failed(request, _failure(request, pipeline.progress.at, pipeline, error))
    except Exception as error:
        # Whatever a model raises for one request is recorded with its place, and must not cost the others.
        if ends_the_job(error, is_alone=not pipeline.exchanges_inside):
            raise
        failure = _failure(request, pipeline.progress.at, pipeline, error)
        if isinstance(error, torch.OutOfMemoryError):
            _free_memory(error)
            if in_group and not task.is_filler:  # alone it has the memory of the others too
                return Repeat(request, torch.OutOfMemoryError(str(error)))
        return None if task.is_filler else Failed(request, failure)


def _written(
    outputs: Outputs, request: Request, making: Making, seconds: float, device: Mapping[str, str]
) -> Made | Failed:
    """Write a request's files and record it, in the writer's thread."""
    pipeline, began = making.pipeline, perf_counter()
    result: Made | Failed
    try:
        saved = save(outputs, request, making.folder.files, Writing(making.job, pipeline.stock))
    except Exception as error:
        # A codec that refuses, an output that no file can hold: this request's failure.
        if ends_the_job(error, is_alone=True):
            raise
        result = Failed(request, _failure(request, At("write", None, request), pipeline, error))
    else:
        rank = pipeline.world.rank
        line = ManifestLine(**request.described(), **saved, rank=rank, seconds=seconds, made_on=device)
        result = Made(request, line)
        num_bytes = sum(file.bytes for file in line.all_files)
        pipeline.recorder.tell("write", Lane.write, "", "", began, perf_counter(), num_bytes, request=request.id)
    _record(result, making.folder)
    pipeline.progress.over(request.id, made=isinstance(result, Made), failed=isinstance(result, Failed))
    return result


def _free_memory(error: BaseException) -> None:
    """The frames of a traceback hold the activations of the call that failed."""
    traceback.clear_frames(error.__traceback__)
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def ends_the_job(error: BaseException, *, is_alone: bool) -> bool:
    """What is not one request's failure: the next request would meet it too, or other ranks are hit already.

    A device that is full for one request (too large a picture) may do for the next, where no rank shares its weights:
    `is_alone`.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return not is_alone
    kinds = MemoryError | dist.DistError | StoreError | TornApart | JobFault
    return is_disk(error) or is_device_failure(error) or isinstance(error, kinds)


def _failure(request: Request, at: At, pipeline: Pipeline, error: Exception) -> Failure:
    return Failure(
        **request.described(),
        stage=at.stage,
        component=at.component or type(pipeline.stock).__name__,
        error=type(error).__name__,
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
        host=socket.gethostname(),
    )
