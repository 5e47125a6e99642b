"""Asking real processes to stop."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.output.folder import Folder
from runner.output.manifest import Manifest
from tests.distributed.chaos import ENVIRONMENT, ROOT, Job, lines


def arguments(output: Path, pictures: int, steps: int = 2) -> list[str]:
    return ["job.prompt=a rocket", f"job.images_per_prompt={pictures}", f"job.call.num_inference_steps={steps}",
            "job.grace_seconds=60", f"job.output={output}"]  # fmt: skip


def state(output: Path) -> str:
    return json.loads((output / "run.json").read_text())["state"]


def start_alone(output: Path, arguments: list[str], begun: int) -> subprocess.Popen[str]:
    """One process, that has begun so many requests."""
    command = [sys.executable, str(ROOT / "scripts" / "generate.py"), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while len(lines(output / "attempts.jsonl")) < begun:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    return process


def test_ctrl_c_lets_the_wave_finish(tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start_alone(output, arguments(output, 500), begun=3)
    process.send_signal(signal.SIGINT)
    assert "stopped: SIGINT; " in process.communicate(timeout=60)[1]
    assert process.returncode == 3 and state(output) == "stopped"
    made = len(lines(output / "manifest.jsonl"))
    assert made >= 3 and len(list((output / "images").iterdir())) == made


def test_ctrl_c_twice_stops_at_once_and_the_wave_is_not_to_blame(tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start_alone(output, [*arguments(output, 2, steps=900), "job.resume_inside=false"], begun=1)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None, "the first waits for the wave"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 3
    assert state(output) == "stopped" and not (output / "manifest.jsonl").exists()
    assert set(Manifest(Folder(output)).recover().attempts.values()) == {0}


def test_a_wave_that_takes_longer_than_the_grace_is_given_up(tmp_path: Path) -> None:
    output = tmp_path / "out"
    keys = ["job.grace_seconds=1", "job.resume_inside=false"]
    process = start_alone(output, [*arguments(output, 2, steps=900), *keys], begun=1)
    process.send_signal(signal.SIGUSR1)
    assert "SIGUSR1, and 1 s of grace; the wave in progress is given up" in process.communicate(timeout=20)[1]
    assert process.returncode == 3 and state(output) == "stopped"


@pytest.mark.parametrize("asked", ["agent", pytest.param("rank", marks=pytest.mark.slow)])
def test_ranks_drain_together_whoever_is_asked(asked: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = Job(output, arguments(output, 500), num_ranks=2)
    try:
        assert job.wait_for(lambda: len(lines(output / "manifest.jsonl")) >= 4 and len(job.workers()) == 2)
        if asked == "agent":
            job.agent.send_signal(signal.SIGTERM)
        else:
            job.workers()[1].send_signal(signal.SIGUSR1)
        job.gone_after(60)
    finally:
        job.kill()
    told = [json.loads(line) for line in lines(output / "attempts.jsonl")]
    begun, withdrawn = ({id for line in told for id in line.get(word, [])} for word in ("started", "withdrawn"))
    made = {json.loads(line)["id"] for line in lines(output / "manifest.jsonl")}
    assert state(output) == "stopped"
    # Each rank finishes what it has; what was handed to one that was asked already is given back.
    assert made <= begun and begun - made <= withdrawn and len(begun - made) <= 2
    assert not list(output.rglob(".*"))
