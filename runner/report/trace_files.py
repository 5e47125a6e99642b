"""The files of a trace: each rank's intervals, written as they come, and the Chrome traces made of them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from runner.health.stderr import say
from runner.output.folder import Folder
from runner.output.journal import Journal
from runner.output.write import write_whole
from runner.pipeline.pipeline import Pipeline
from runner.report.chrome import chrome_trace
from runner.report.operators import operators
from runner.report.read_trace import read_intervals, read_ranks
from runner.trace.clock import common_start
from runner.trace.interval import Head, Interval
from runner.trace.recorder import Details
from runner.world import World


@contextmanager
def traced(pipeline: Pipeline, folder: Folder, world: World, *, with_ops: bool = False) -> Iterator[None]:
    """Around the making of requests: each interval goes to this rank's file, and in the end all are shown on one clock.
    With `with_ops`, what torch's profiler saw goes into each rank's Chrome trace as well. Collective. What was traced
    before an error stays in the ranks' files."""
    world.agreed(lambda: _forget(folder) if world.rank == 0 else None)
    start = common_start(world.control)
    file = Journal(folder.intervals(world.rank))
    head = Head(
        rank=world.rank, world_size=world.size, device=str(world.device), began=start.began, clock_error=start.error
    )
    world.agreed(lambda: file.rewrite([head.to_json()]))
    details = Details(start, lambda intervals: file.append([one.to_json() for one in intervals]))
    pipeline.trace(details)
    with operators(start) if with_ops else nullcontext(list[dict[str, Any]]()) as ops:
        yield
    pipeline.recorder.settle()
    if details.dropped:
        file.append([{"dropped": details.dropped}])
    own = read_intervals(folder.intervals(world.rank))[1]
    _write(folder.trace(world.rank), {world.rank: own}, ops)
    world.gather(None)  # every rank's file is whole
    if world.rank == 0:
        _write(folder.merged_trace, read_ranks(folder), [])


def _forget(folder: Folder) -> None:
    """An earlier run's, which may have had more ranks."""
    for path in folder.profile.glob("rank*.json*"):
        path.unlink()
    folder.merged_trace.unlink(missing_ok=True)


def _write(path: Path, ranks: dict[int, Sequence[Interval]], ops: Sequence[dict[str, Any]]) -> None:
    trace = chrome_trace(ranks)
    trace["traceEvents"] += ops
    try:
        write_whole(path, lambda temp: temp.write_text(json.dumps(trace, separators=(",", ":")), encoding="utf-8"))
    except OSError as error:  # the pictures are made, and the other ranks wait
        say(f"could not write {path}: {error}")
