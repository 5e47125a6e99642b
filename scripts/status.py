"""What a job is doing, from the files in its output folder: scripts/status.py OUTPUT [--watch]

On any node that sees the folder; of a job that is over or dead too. Needs no GPU, and asks nothing of the job.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runner.errors import ExitCode, UserError
from runner.output.folder import Folder
from runner.report.live.life import Life
from runner.report.live.table import table
from runner.report.told import Told

_AGAIN = 2.5  # seconds after which a live job has written once more
_EVERY = 2.0  # seconds, with --watch


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the output folder of a job (job.output), or of its part")
    parser.add_argument("--watch", action="store_true", help="again every 2 s, until the job is over")
    arguments = parser.parse_args(argv)
    try:
        _show(Folder(arguments.output), watch=arguments.watch)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.WRONG
    except (KeyboardInterrupt, BrokenPipeError):
        return ExitCode.DONE
    return ExitCode.DONE


def _show(folder: Folder, *, watch: bool) -> None:
    """Raises UserError where no job has worked."""
    if not (folder.lock.exists() or folder.run_json.exists()):
        raise UserError(f"{folder.path} is no output folder of a job: it has neither {folder.lock.name} nor run.json")
    told = _sure(Told.by(folder))
    clear = "\x1b[H\x1b[J" if watch and sys.stdout.isatty() else ""
    print(clear + table(told), flush=True)
    while watch and told.state in (Life.running.value, Life.silent.value):
        time.sleep(_EVERY)
        told = _sure(Told.by(folder), told)
        print((clear or "\n") + table(told), flush=True)


def _sure(told: Told, before: Told | None = None) -> Told:
    """A job whose node's clock is off seems silent, and writes all the same: since `before`, or now."""
    if told.state != Life.silent.value:
        return told
    if before is None:
        time.sleep(_AGAIN)
        told, before = Told.by(told.folder), told
    is_alive = told.status is not None and before.status is not None and told.status.time != before.status.time
    return told.seen_alive() if is_alive else told


if __name__ == "__main__":
    sys.exit(main())
