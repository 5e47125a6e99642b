"""What a job says must not be why it fails."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.health.stderr import BestEffort, say

ROOT = Path(__file__).resolve().parents[3]


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        self.write("")


def test_a_stream_that_takes_nothing_any_more_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (Full(), closed):
        wrapped = BestEffort(stream)
        assert wrapped.write("a line\n") == 7
        print("another", file=wrapped, flush=True)
        monkeypatch.setattr(sys, "stderr", stream)
        say("the last")
    assert BestEffort(sys.__stderr__).fileno() == 2, "the rest is the stream's own"


@pytest.mark.slow
def test_a_job_whose_reader_is_gone_makes_its_pictures(tmp_path: Path) -> None:
    """As `generate.py 2>&1 | head` leaves it."""
    read, write = os.pipe()
    settings = ["job.prompt=a rocket", "job.images_per_prompt=1", "job.call.num_inference_steps=1"]
    job = subprocess.Popen(
        [sys.executable, ROOT / "scripts/generate.py", *settings, f"job.output={tmp_path}"],
        stdout=write, stderr=write, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(write)
    os.close(read)
    assert job.wait(120) == 0
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "done"
