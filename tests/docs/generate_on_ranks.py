"""Runs scripts/generate.py with one command line after the other in one world: starting ranks costs seconds each time.

argv: a file with a JSON list of words a line, and the file to which rank 0 writes a line for each: the exit code, and
what was printed.
"""

import importlib.util
import json
import os
import sys
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

import runner.world


def outcome(generate: ModuleType, words: list[str]) -> dict[str, object]:
    printed = StringIO()
    sys.argv = ["generate.py", *words]
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            code = generate.main()
        except SystemExit as end:  # argparse's
            code = end.code
    return {"code": int(code), "printed": printed.getvalue()}


def main() -> None:
    spec = importlib.util.spec_from_file_location("generate", "scripts/generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    listing, outcomes = map(Path, sys.argv[1:])
    with runner.world.joined_world() as world:
        runner.world.joined_world = lambda *_: nullcontext(world)  # type: ignore[assignment]
        for line in listing.read_text().splitlines():
            result = outcome(generate, json.loads(line))
            if os.environ.get("RANK", "0") == "0":
                with outcomes.open("a") as stream:
                    stream.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
