"""A real job, looked at from outside while it runs, and after it was killed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.errors import ExitCode
from runner.output.folder import Folder
from runner.report.live.status import JobStatus
from runner.report.told import Told
from scripts.status import main

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[4]


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def test_a_job_is_seen_running_and_dead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path / "out")
    command = [sys.executable, str(ROOT / "scripts" / "generate.py"), "job.images_per_prompt=500"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(
            [*command, f"job.output={folder.path}"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            until(lambda: (status := JobStatus.read(folder)) is not None and status.made >= 2 and bool(status.rate))
            until(lambda: (status := JobStatus.read(folder)) is not None and bool(status.ranks[0].steps))
            status = JobStatus.read(folder)
            assert status is not None and status.total == 4000 and (status.seconds_left or 0) > 10
            (rank,) = status.ranks
            (_, done, total) = rank.steps[0]
            assert 0 <= done <= total == 16 and rank.host_bytes > 100 << 20
            assert main([str(folder.path)]) == ExitCode.DONE
            assert f"{folder.path}: running" in capsys.readouterr().out
            until(lambda: folder.report.exists())
            assert '"state":"running"' in folder.report.read_text()
        finally:
            job.kill()
            job.wait()
    told = Told.by(folder)
    assert told.state in ("dead", "running") and len(told.made) >= 2
    assert told.run["components"]["transformer"]["reason"], "the placement is known before the job is over"
    until(lambda: Told.by(folder).state == "dead", 30)
    assert main([str(folder.path), "--watch"]) == ExitCode.DONE
    assert "left no word" in capsys.readouterr().out
    assert len(told.samples) > 2 and [line["state"] for line in told.runs] == ["running"]
    assert "\r" not in (tmp_path / "log").read_text(), "a log has no line that is written over"


def test_a_folder_without_a_job_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == ExitCode.WRONG
    assert "no output folder of a job" in capsys.readouterr().err
