"""A rank whose torchrun agent is gone before it could ask to be told."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import time
time.sleep(1)  # the agent goes meanwhile
from runner.errors import JobFault
from runner.health.torchrun import end_with_agent
try:
    end_with_agent()
except JobFault as fault:
    print(fault)
"""


def test_an_orphan_does_not_begin(tmp_path: Path) -> None:
    said = tmp_path / "said"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCHELASTIC_RUN_ID": "x"}
    script = f'"$0" -c "$1" > {said} & exit 0'  # the shell is the agent, and leaves its worker behind
    subprocess.run(["sh", "-c", script, sys.executable, CODE], env=environment, check=True)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not said.read_text():
        time.sleep(0.2)
    assert said.read_text() == "its torchrun agent is gone\n"
