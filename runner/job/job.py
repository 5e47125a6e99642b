"""Makes a job's requests in waves over the teams, and records what became of each."""

import socket
import traceback
from collections import deque
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
from runner.calls.meter import Meter
from runner.calls.replay import StoppedInside
from runner.calls.round import ResultsDiffer
from runner.config import JobConfig
from runner.errors import JobFault
from runner.health.fault import is_device_failure, is_disk
from runner.health.messages import Asks
from runner.health.watch import Watch
from runner.job.call_logs import CallLogs, keep_only, remove_logs_of, what_decides
from runner.job.desk import handing_out
from runner.job.group_size import GroupSize
from runner.job.results import Failed, Made, Repeat, Result, Settled, Stopped, is_settled_by, of_team
from runner.job.waves import Task, Wave, Waves
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
from runner.trace.interval import Lane
from runner.world import World


def run_job(
    requests: Sequence[Request], pipeline: Pipeline, job: JobConfig, world: World, *, folder: JobFolder, watch: Watch
) -> list[Settled]:
    """Make the requests: in each wave, each team makes one, or `job.group` together; where no rank needs another, each
    rank has its next ones as soon as it is done, without waves. Rank 0 records them.

    Ends early when the job is asked to stop: between requests, or inside those that keep a log of their calls.
    Returns what was tried, on every rank.
    """
    settled: dict[str, Settled] = {}
    logs = _call_logs(pipeline, job, folder, watch)
    if world.rank == 0:
        keep_only(folder.files, [request.id for request in requests])
    in_step = max(pipeline.lockstep.size // world.team.size, 1)  # teams
    tried = [request.id for request in requests if folder.state.attempts.get(request.id)]
    size = GroupSize(job.group, pipeline)
    waves = Waves(requests, [in_step] * (world.team.count // in_step), size.together, tried)
    making = _Making(pipeline, job, folder, logs, watch, Writer(pipeline.progress))
    hands_out = world.size > 1 and world.team.size == 1 and pipeline.lockstep.size == 1  # no rank needs another
    with making.writer:
        for wave in watch.until_stopped(waves if size.is_open or not hands_out else ()):
            folder.check()
            meter = size.meter()
            results = _make_wave(wave, making, meter)
            again = [result for result in results if isinstance(result, Repeat)]
            waves.again([result.request for result in again], alone=any(result.alone for result in again))
            settled |= _by_id(results)
            if meter is not None:
                size.choose(meter, -(-(len(requests) - len(settled)) // world.team.count))
                waves.together = size.together
            if hands_out and not size.is_open:
                break
        told: Sequence[Result] = ()
        if hands_out:
            told = _make_one_by_one([tasks for wave in waves for tasks in wave if tasks], making)
        making.writer.wait()
        settled |= _by_id(_told_by_all(making, told))
    watch.agree_to_stop()
    folder.manifest.close()
    if world.rank == 0:
        over = {result.request.id for result in settled.values() if isinstance(result, Made)}
        keep_only(folder.files, [request.id for request in requests if request.id not in over])
    return list(settled.values())


def _by_id(results: Sequence[Result]) -> dict[str, Settled]:
    return {result.request.id: result for result in results if isinstance(result, Made | Failed)}


def _call_logs(pipeline: Pipeline, job: JobConfig, folder: JobFolder, watch: Watch) -> CallLogs | None:
    if job.resume_inside is False:
        return None
    if pipeline.replay is None:
        pipeline.log_calls()
    world = pipeline.world
    decides, leads = what_decides(world.device), world.team.is_first
    return CallLogs(folder.files, decides, watch.time_left, always=job.resume_inside is True, writes=leads)


@dataclass(frozen=True)
class _Making:
    """What every wave is made with."""

    pipeline: Pipeline
    job: JobConfig
    folder: JobFolder
    logs: CallLogs | None
    watch: Watch
    writer: Writer


def _make_wave(wave: Wave, making: _Making, meter: Meter | None) -> list[Result]:
    """Make a wave. Collective; what has come of it so far, and of the one before, from all teams, on every rank: each
    rank's last output may still be written while the next wave is made."""
    requests = [task.request for team in wave for task in team if not task.is_filler]
    pipeline, folder = making.pipeline, making.folder
    progress, world = pipeline.progress, pipeline.world
    progress.begin(requests)
    folder.manifest.begin([request.id for request in requests])
    mine: list[Result] = []
    tasks = wave[world.team.index]
    if tasks:
        _make(tasks, making, mine, meter)
    else:
        _switch_along(requests[0], pipeline)
    return _told_by_all(making, mine)


def _make_one_by_one(batches: Sequence[Sequence[Task]], making: _Making) -> list[Settled | Stopped]:
    """Make the batches that are handed to this rank, until there are no more; what became of them. Collective."""
    told: list[Settled | Stopped] = []
    news: list[Result] = []
    again: deque[str] = deque()
    with handing_out(batches, making.folder.manifest, making.watch, making.pipeline.world) as take:
        while True:
            news += making.writer.over()
            told += [result for result in news if not isinstance(result, Repeat)]
            again += [result.request.id for result in news if isinstance(result, Repeat)]
            withdrawn = [result.request.id for result in news if isinstance(result, Repeat | Stopped)]
            over = [result.request.id for result in news]
            making.folder.check()
            tasks = take(Asks(tuple(over), tuple(withdrawn), tuple(again)[:1]))
            if not tasks:
                return told
            if again:
                again.popleft()
            news = []
            _make(tasks, making, news, None)
            making.pipeline.recorder.settle()


def _make(tasks: Sequence[Task], making: _Making, results: list[Result], meter: Meter | None) -> None:
    if len(tasks) > 1 or meter is not None:
        _make_group(tasks, making, results, meter)
    else:
        _make_one(tasks[0], making, results)
    if making.pipeline.replay is not None:
        making.pipeline.progress.note = str(making.pipeline.replay.kept)


def _told_by_all(making: _Making, mine: Sequence[Result]) -> list[Result]:
    """What became of requests on any rank: of those with nothing to write, and of what was written. Collective."""
    world, progress, folder = making.pipeline.world, making.pipeline.progress, making.folder
    mine = [*mine, *making.writer.over()]
    progress.waiting()
    with making.pipeline.recorder.range("meet", Lane.wait):
        results = _of_all_teams(world.gather(mine), world)
    making.pipeline.recorder.settle()
    progress.doing("record")
    folder.manifest.withdraw([result.request.id for result in results if isinstance(result, Repeat | Stopped)])
    recorded = {result.request.id for result in mine if is_settled_by(result, world.team)}
    theirs = [result for result in results if result.request.id not in recorded]
    folder.manifest.settle(*_lines(theirs), folder.state.attempts)
    progress.end([result.request.id for result in results])
    progress.waiting()
    return results


def _of_all_teams(by_rank: Sequence[Sequence[Result]], world: World) -> list[Result]:
    size = world.team.size
    teams = [by_rank[first : first + size] for first in range(0, world.size, size)]
    return [result for team in teams for result in of_team(team)]


def _lines(results: Sequence[Result]) -> tuple[list[ManifestLine], list[Failure]]:
    """Of what was made, and of what failed."""
    made = [result.line for result in results if isinstance(result, Made)]
    return made, [result.failure for result in results if isinstance(result, Failed)]


def _record(result: Result, folder: JobFolder) -> None:
    """What this rank made, or what failed, as soon as it is over."""
    made, failed = _lines([result])
    folder.manifest.record(made, failed, folder.state.attempts)
    # Other failures may have come after an hour of calls that are right, as of memory that the decoder lacked.
    wrong = [failure for failure in failed if failure.error == NotFinite.__name__]
    remove_logs_of(folder.files, [line.id for line in (*made, *wrong)])


def _make_one(task: Task, making: _Making, results: list[Result]) -> None:
    start = perf_counter()
    resume = making.logs.open(task.request, is_filler=task.is_filler) if making.logs else None

    def outcome() -> Any:
        return making.pipeline(task.request, resume)

    _settle(task, outcome, making, results, lambda: perf_counter() - start)


def _make_group(tasks: Sequence[Task], making: _Making, results: list[Result], meter: Meter | None) -> None:
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
def _turns_noted(tasks: Sequence[Task], making: _Making) -> Iterator[None]:
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
    making: _Making,
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


def _switch_along(request: Request, pipeline: Pipeline) -> None:
    """A rank that has no request switches adapters too: the ranks of a node may share the weights that are edited."""
    try:
        pipeline.adapters.set(request.lora)
    except Exception:
        return  # the same on the ranks that have requests, which record it


def _result(
    task: Task, outcome: Callable[[], Any], making: _Making, *, in_group: bool
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
    outputs: Outputs, request: Request, making: _Making, seconds: float, device: Mapping[str, str]
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
