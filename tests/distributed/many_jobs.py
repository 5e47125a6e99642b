"""Runs several jobs in one world of ranks: one start of the interpreter for all of them. argv: a file, a job a line."""

import json
import sys
from pathlib import Path

from runner.config import load_config
from runner.run import run
from runner.world import joined_world

if __name__ == "__main__":
    jobs = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    with joined_world() as world:
        codes = [run(load_config(None, job), world) for job in jobs]
    sys.exit(max(codes))
