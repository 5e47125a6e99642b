"""The --help of several scripts from one process: importing torch and diffusers costs seconds each time.

argv: scripts. Prints a JSON object: what each printed, by its path.
"""

import json
import runpy
import sys
from contextlib import redirect_stdout
from io import StringIO


def help_of(script: str) -> str:
    printed = StringIO()
    sys.argv = [script, "--help"]
    try:
        with redirect_stdout(printed):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"{script} --help ends with {end.code}"
    return printed.getvalue()


if __name__ == "__main__":
    sys.path.insert(0, "scripts")  # as `python scripts/x.py` does
    print(json.dumps({script: help_of(script) for script in sys.argv[1:]}))
