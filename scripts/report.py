"""report.html of a job, from the files in its output folder: scripts/report.py OUTPUT [OUTPUT ...]

While the job runs, when it is over, and when it is dead; on any node that sees the folder. Needs no GPU and no weights.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.errors import ExitCode, UserError
from runner.output.folder import Folder
from runner.report.page.page import write_report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="+", type=Path, help="an output folder of a job (job.output), or of its part")
    try:
        for output in parser.parse_args(argv).output:
            print(written(output), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.WRONG
    return ExitCode.DONE


def written(output: Path) -> Path:
    """The report of one folder. Raises UserError where no job has worked, or it cannot be written."""
    folder = Folder(output)
    if not (folder.lock.exists() or folder.run_json.exists()):
        raise UserError(f"{output} is no output folder of a job: it has neither {folder.lock.name} nor run.json")
    try:
        write_report(folder)
    except OSError as error:
        raise UserError(f"{folder.report} cannot be written: {error.strerror or error}") from error
    return folder.report


if __name__ == "__main__":
    sys.exit(main())
