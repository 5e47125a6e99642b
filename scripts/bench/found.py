"""What a benchmark found, run as a command of its own; kept in a file as soon as it is over."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench import ratios
from bench.benches import Bench
from bench.ratios import Ratio

ROOT = Path(__file__).resolve().parents[2]
_PROGRESS = re.compile(r"\d+%\|.*it/s\]")  # what libraries print of their own bars


@dataclass
class Found:
    """What a benchmark printed, and its ratios; `failed` says why there are none, or fewer."""

    name: str
    command: str
    seconds: float = 0.0
    busy: tuple[float, float] = (0.0, 0.0)  # percent of the machine, before and after
    printed: str = ""
    failed: str = ""
    ratios: list[Ratio] = field(default_factory=list)
    ended: float = 0.0  # seconds since 1970
    commit: str = ""

    def save(self, folder: Path) -> None:
        (folder / f"{self.name}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")


def load(folder: Path, benches: Iterable[Bench]) -> list[Found]:
    """What is kept in the folder, in the order of `benches`."""
    files = [folder / f"{bench.name}.json" for bench in benches]
    return [_from_json(json.loads(file.read_text())) for file in files if file.exists()]


def _from_json(value: dict[str, Any]) -> Found:
    return Found(**value | {"busy": tuple(value["busy"]), "ratios": [Ratio(**one) for one in value["ratios"]]})


def not_run(bench: Bench, why: str) -> Found:
    return Found(bench.name, bench.command, failed=f"NOT RUN: {why}", ended=time.time(), commit=commit())


def run(bench: Bench, most_seconds: float, *, dry: bool = False) -> Found:
    """For at most so many seconds. The ratios that it noted until it failed, or was given up, are kept."""
    command = f"{bench.command} {bench.dry}".strip() if dry else bench.command
    found = Found(bench.name, command, commit=commit())
    with tempfile.TemporaryDirectory(prefix="bench_all.") as temporary:
        file = Path(temporary) / "ratios.jsonl"
        before, began = psutil.cpu_percent(interval=0.5), time.perf_counter()
        with (Path(temporary) / "printed").open("w+") as printed:
            found.failed = _result(command, file, printed.fileno(), most_seconds)
            printed.seek(0)
            found.printed = "".join(line for line in printed if not _PROGRESS.search(line))
        found.seconds, found.ended = time.perf_counter() - began, time.time()
        found.busy = before, psutil.cpu_percent(interval=0.5)
        found.ratios = ratios.read(file)
    return found


def _result(command: str, file: Path, printed: int, most_seconds: float) -> str:
    """How it failed, if it did. Whatever it started is gone then."""
    words = shlex.split(command)
    start = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "torch.distributed.run"]
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), ratios.FILE: str(file)}
    process = subprocess.Popen(
        [*start, *words[1:]], cwd=ROOT, env={**os.environ, **environment}, stdout=printed, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        code = process.wait(timeout=most_seconds)
    except subprocess.TimeoutExpired:
        return f"GIVEN UP after {most_seconds / 60:.3g} minutes"
    finally:
        if process.poll() is None:
            _end(process)
    return f"FAILED with exit code {code}" if code else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """First asked, so that temporary folders go; its session is its own."""
    for number, patience in ((signal.SIGTERM, 15.0), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=patience)
            return
        except subprocess.TimeoutExpired:
            continue


def commit() -> str:
    """Of the checkout; with a + where it was changed since, but for what benchmarks write."""
    known = _git("rev-parse", "--short", "HEAD")
    return known + ("+" if _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks") else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
