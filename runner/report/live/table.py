"""How a job stands, as a page of text."""

from runner.output.lines import Failure
from runner.report.live.life import last_sign
from runner.report.live.line import a_time
from runner.report.live.status import JobStatus, RankStatus
from runner.report.told import Told
from runner.report.wording import at_time, in_bytes, in_seconds

_RANKS = 64  # lines at most
_FAILURES = 5
_PROMPT = 40


def table(told: Told) -> str:
    run, status = told.run, told.status
    slurm = f", Slurm job {run['slurm_job']}" if run.get("slurm_job") else ""
    who = f"process {run.get('pid')} on {run.get('host')} since {run.get('since')}{slurm}" if run else "no run yet"
    lines = [f"{told.folder.path}: {told.state}", who]
    if status is not None and status.run == run.get("run"):
        is_open = run.get("state") == "running"
        lines += [_counts(told, status, is_open=is_open)]
        if is_open:
            lines += ["", *_ranks(status)]
    else:
        lines += [f"{len(told.made)} made"]
    lines += _end(told)
    if told.failures:
        lines += ["", f"the last of {len(told.failures)} failed tries:", *map(_failure, told.failures[-_FAILURES:])]
    return "\n".join(lines)


def _counts(told: Told, status: JobStatus, *, is_open: bool) -> str:
    parts = [f"{len(told.made)} of {status.total or '?'} made"]
    parts += [f"{status.failed} failed"] if status.failed else []
    parts += [f"{told.begun_again} begun again"] if told.begun_again else []
    if is_open and status.rate is not None and status.seconds_left is not None:
        parts += [a_time(status.rate), f"{in_seconds(status.seconds_left)} left"]
    parts += [status.note] if status.note else []
    parts += [f"stopping: {status.stopping}"] if status.stopping else []
    return ", ".join(parts)


def _ranks(status: JobStatus) -> list[str]:
    rows: list[tuple[str, ...]] = [("rank", "on", "doing", "steps", "made", "own memory", "device", "for", "request")]
    rows += [_row(rank) for rank in status.ranks[:_RANKS]]
    if not any(rank.device_bytes for rank in status.ranks):
        rows = [(*row[:6], *row[7:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    more = len(status.ranks) - _RANKS
    return [*lines, *([f"and {more} more ranks, in status.json"] if more > 0 else [])]


def _row(rank: RankStatus) -> tuple[str, ...]:
    steps = " ".join(f"{done}/{total}" for _, done, total in rank.steps[:4]) + (" ..." if len(rank.steps) > 4 else "")
    return (
        str(rank.rank),
        rank.host,
        rank.place,
        steps or "-",
        str(rank.made),
        in_bytes(rank.host_bytes),
        in_bytes(rank.device_bytes),
        in_seconds(round(rank.standstill + rank.ago)),
        (rank.prompt or "-").replace("\n", " ")[:_PROMPT],
    )


def _end(told: Told) -> list[str]:
    """What is to be said of a job that is not simply running."""
    run = told.run
    when = at_time(last_sign(run, told.status, told.folder))
    match told.state:
        case "dead":
            return [
                "",
                f"its process is gone, and left no word; last sign of it: {when}. The same command goes on",
            ]
        case "silent":
            return ["", f"no sign of life since {when}: killed, stopped, or its file system hangs"]
        case "fault":
            fault = run.get("fault", {})
            place = "/".join(str(part) for part in (fault.get("stage"), fault.get("component")) if part)
            return ["", f"fault: rank {fault.get('rank')} on {fault.get('host')}, {place}: {fault.get('cause')}"]
        case "stopped":
            return ["", f"stopped: {run.get('stopped')}; the same command goes on"]
    return []


def _failure(failure: Failure) -> str:
    title = str(failure.prompt or failure.id).replace("\n", " ")[:_PROMPT]
    return f"  {failure.time or '-'}  {failure.reason.splitlines()[0][:160]}  ({title!r}, seed {failure.seed})"
