"""Makes a job's requests in waves over the teams, and records what became of each."""

from collections import deque
from collections.abc import Sequence

from runner.config import JobConfig
from runner.groups.meter import Meter
from runner.health.messages import Asks
from runner.health.watch import Watch
from runner.job.call_logs import CallLogs, keep_only, what_decides
from runner.job.desk import handing_out
from runner.job.group_size import GroupSize
from runner.job.making import Making, lines_of, make
from runner.job.results import Failed, Made, Repeat, Result, Settled, Stopped, is_settled_by, of_team
from runner.job.waves import Task, Wave, Waves
from runner.job.writer import Writer
from runner.output.job_folder import JobFolder
from runner.pipeline.pipeline import Pipeline
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
    making = Making(pipeline, job, folder, logs, watch, Writer(pipeline.progress))
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


def _make_wave(wave: Wave, making: Making, meter: Meter | None) -> list[Result]:
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
        make(tasks, making, mine, meter)
    return _told_by_all(making, mine)


def _make_one_by_one(batches: Sequence[Sequence[Task]], making: Making) -> list[Settled | Stopped]:
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
            make(tasks, making, news, None)
            making.pipeline.recorder.settle()


def _told_by_all(making: Making, mine: Sequence[Result]) -> list[Result]:
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
    folder.manifest.settle(*lines_of(theirs), folder.state.attempts)
    progress.end([result.request.id for result in results])
    progress.waiting()
    return results


def _of_all_teams(by_rank: Sequence[Sequence[Result]], world: World) -> list[Result]:
    size = world.team.size
    teams = [by_rank[first : first + size] for first in range(0, world.size, size)]
    return [result for team in teams for result in of_team(team)]
