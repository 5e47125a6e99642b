"""Where did the time go? python scripts/trace.py OUTPUT, the folder of a job: finished, running, or dead."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import ExitCode
from runner.output.folder import Folder
from runner.output.write import read_json, write_whole
from runner.report.chrome import chrome_trace
from runner.report.read_trace import read_ranks
from runner.report.time_table import time_table
from runner.trace.figures import where
from runner.trace.interval import Interval
from runner.trace.sums import steps_of, sums_of


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="trace.py", description=__doc__, epilog="example: trace.py outputs/mine --parts"
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a job's folder (of a part: that part's)")
    parser.add_argument("--parts", action="store_true", help="tell warm-up and steady steps apart")
    parser.add_argument("--intervals", action="store_true", help="from the files of the trace, not from run.json")
    parser.add_argument("--merge", action="store_true", help="write the Chrome trace of all ranks of a job that died")
    given = parser.parse_args(argv)
    folder = Folder(given.output)
    told = {} if given.intervals else _from_run_json(folder)
    ranks = {} if told and not given.merge else read_ranks(folder)
    told = told or {rank: _from_intervals(intervals) for rank, intervals in ranks.items() if intervals}
    if not told:
        print(
            f"error: {given.output} holds neither a run.json of a job that ended nor a trace; ", end="", file=sys.stderr
        )
        print("a trace is written with job.profile=true", file=sys.stderr)
        return ExitCode.WRONG
    print(time_table(told, by_part=given.parts))
    if given.merge:
        trace = json.dumps(chrome_trace(ranks), separators=(",", ":"))
        write_whole(folder.merged_trace, lambda temp: temp.write_text(trace, encoding="utf-8"))
    return ExitCode.DONE


def _from_run_json(folder: Folder) -> dict[int, Mapping[str, Any]]:
    ranks = read_json(folder.run_json).get("ranks", [])
    return {number: rank["time"] for number, rank in enumerate(ranks) if "time" in rank}


def _from_intervals(intervals: Sequence[Interval]) -> Mapping[str, Any]:
    seconds = max(one.end for one in intervals) - min(one.begin for one in intervals)
    return where(sums_of(intervals), seconds).to_json(steps_of(intervals))


if __name__ == "__main__":
    sys.exit(main())
