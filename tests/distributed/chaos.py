"""Breaking a running job on purpose, and looking at what it leaves behind."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.processes import TELLS_WHERE, abort

ROOT = Path(__file__).resolve().parents[2]
GENERATE = ROOT / "scripts" / "generate.py"
TIMEOUT = 10  # job.timeout_seconds: what a stopped rank costs
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Row:
    """One broken run, as the table shows it."""

    fault: str
    ranks: int
    finished: int  # requests made by the run
    redone: int  # requests begun but not finished: the next run makes them again
    at_once: int  # the most requests that were begun together
    seconds: float | None  # from the fault until every process was gone; None when the job ended by itself before
    state: str  # run.json's


class Job:
    """A torchrun agent with its ranks, on an output folder."""

    def __init__(
        self, output: Path, arguments: list[str], num_ranks: int, *, log: Path | None = None, script: Path = GENERATE
    ) -> None:
        self.output, self.num_ranks = output, num_ranks
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        self.log = log or output.with_name(f"{output.name}.log")
        with self.log.open("ab") as stream:
            self.agent = psutil.Popen(
                [sys.executable, *torchrun, str(script), f"job.output={output}",
                 f"job.timeout_seconds={TIMEOUT}", "job.max_attempts=1000", *arguments],
                cwd=ROOT, env={**ENVIRONMENT, **TELLS_WHERE}, stdout=stream, stderr=stream,
            )  # fmt: skip
        self._seen: dict[int, psutil.Process] = {}

    def workers(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            for child in self.agent.children(recursive=True):
                if "generate.py" in " ".join(child.cmdline()):
                    self._seen[child.pid] = child
        return [process for process in self._seen.values() if _is_alive(process)]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 600) -> bool:
        """Whether `condition` held before the job ended."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.agent.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def gone_after(self, seconds: float = 60) -> float:
        """Seconds until the agent and every rank that was ever seen is gone."""
        start = time.monotonic()
        while self.agent.poll() is None or self.workers():
            if time.monotonic() - start > seconds:
                there = f"{self.agent}, {self.workers()}"
                abort([self.agent.pid, *(worker.pid for worker in self.workers())])
                raise AssertionError(f"still there after {seconds} s: {there}\n{self.log.read_text()[-20000:]}")
            time.sleep(0.02)
        return time.monotonic() - start

    def kill(self) -> None:
        """Whatever is left, for a test that failed."""
        for process in [self.agent, *self.workers()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def lines(file: Path) -> list[bytes]:
    """Whole lines."""
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


def worker_killed(job: Job, rng: random.Random) -> None:
    rng.choice(job.workers()).kill()


def worker_stopped(job: Job, rng: random.Random) -> None:
    rng.choice(job.workers()).suspend()


def agent_killed(job: Job, rng: random.Random) -> None:
    job.agent.kill()


def all_killed(job: Job, rng: random.Random) -> None:
    """As a lost node: nobody has a last word."""
    for process in [job.agent, *job.workers()]:
        process.kill()


def terminated(job: Job, rng: random.Random) -> None:
    job.agent.send_signal(rng.choice([signal.SIGTERM, signal.SIGINT]))


def one_rank_asked(job: Job, rng: random.Random) -> None:
    rng.choice(job.workers()).send_signal(rng.choice([signal.SIGTERM, signal.SIGUSR1]))


def stop_file(job: Job, rng: random.Random) -> None:
    (job.output / "stop").touch()


def disk_full(job: Job, rng: random.Random) -> None:
    """Needs an output folder on a small disk. Leaves a few pages, so that it ends in the middle of a file."""
    disk = os.statvfs(job.output)
    free = disk.f_bavail * disk.f_frsize
    with suppress(OSError), (job.output.parent / "ballast").open("wb") as ballast:
        ballast.write(b"\0" * max(0, free - rng.randrange(4) * 4096))


def torn_line(job: Job, rng: random.Random) -> None:
    """Killed in the middle of writing a line."""
    all_killed(job, rng)
    job.gone_after()
    whole = lines(job.output / "manifest.jsonl")
    line = whole[-1] if whole else b'{"id": "0123456789abcdef", "file": "images/x.png"}'
    with (job.output / "manifest.jsonl").open("ab") as stream:
        stream.write(line[: rng.randrange(1, len(line))])


def picture_cut_short(job: Job, rng: random.Random) -> None:
    all_killed(job, rng)
    job.gone_after()
    pictures = sorted((job.output / "images").glob("[!.]*"))
    if pictures:
        os.truncate(rng.choice(pictures), 100)


def picture_altered(job: Job, rng: random.Random) -> None:
    """Of the same size, so that only its time or its content can tell."""
    all_killed(job, rng)
    job.gone_after()
    pictures = sorted((job.output / "images").glob("[!.]*"))
    if pictures:
        with rng.choice(pictures).open("r+b") as stream:
            stream.seek(60)
            stream.write(b"\xff" * 8)


Fault = Callable[[Job, random.Random], None]
FAULTS: tuple[Fault, ...] = (
    worker_killed,
    worker_stopped,
    agent_killed,
    all_killed,
    terminated,
    one_rank_asked,
    stop_file,
    disk_full,
    torn_line,
    picture_cut_short,
    picture_altered,
)


def broken_run(
    output: Path, arguments: list[str], fault: Callable[[Job, random.Random], None], rng: random.Random
) -> Row:
    """Start the job, break it at a random moment, and wait for its last process."""
    manifest, attempts = output / "manifest.jsonl", output / "attempts.jsonl"
    finished_before, begun_before, lines_before = len(lines(manifest)), _begun(attempts), len(lines(attempts))
    # Half of the time the log is on the small disk too, and as full.
    log = output.parent.with_name(f"{output.name}.log") if rng.random() < 0.5 else None
    job = Job(output, arguments, num_ranks=rng.choice([2, 2, 3]), log=log)
    try:
        # After some requests of this run, and then anywhere in a wave.
        target, wait = _begun(attempts) + rng.randrange(1, 9), rng.uniform(0, 0.4)
        seconds = None
        log_start = job.log.stat().st_size
        if job.wait_for(lambda: _begun(attempts) >= target and len(job.workers()) == job.num_ranks):
            time.sleep(wait)
            if job.agent.poll() is None:
                fault(job, rng)
                seconds = job.gone_after()
        job.gone_after(300)
        if seconds is None and job.agent.returncode != 0:
            print(f"ended by itself:\n{job.log.read_bytes()[log_start:].decode()[-3000:]}")
    finally:
        job.kill()
        (output.parent / "ballast").unlink(missing_ok=True)
    # A mended manifest may have lost lines to begin with.
    finished = max(0, len(lines(manifest)) - finished_before)
    redone = max(0, _begun(attempts) - begun_before - finished)
    state = json.loads((output / "run.json").read_text())["state"] if (output / "run.json").exists() else "-"
    at_once = max((len(_started(line)) for line in lines(attempts)[lines_before:]), default=0)
    return Row(fault.__name__, job.num_ranks, finished, redone, at_once, seconds, state)


def run_until_done(output: Path, arguments: list[str], num_ranks: int = 2) -> int:
    """Runs until one ends with everything made. Returns their number."""
    for number in range(1, 6):
        job = Job(output, arguments, num_ranks)
        try:
            job.gone_after(240)
        finally:
            job.kill()
        if job.agent.returncode == 0:
            return number
    raise AssertionError(f"not done after {number} runs:\n{job.log.read_text()[-3000:]}")


def table(rows: list[Row]) -> str:
    header = f"{'fault':18} {'ranks':>5} {'finished':>8} {'redone':>6} {'at once':>7} {'s to end':>8}  state"
    shown = [
        f"{row.fault:18} {row.ranks:5} {row.finished:8} {row.redone:6} {row.at_once:7} "
        f"{'-' if row.seconds is None else format(row.seconds, '.1f'):>8}  {row.state}"
        for row in rows
    ]
    return "\n".join([header, *shown])


def leftovers(output: Path) -> list[str]:
    """What must not be there once a job has ended: processes on this folder, temporary files."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            if f"job.output={output}" in process.cmdline():
                processes.append(str(process))
    return processes + [str(file) for file in output.rglob(".*")]


def _begun(attempts: Path) -> int:
    """Requests that were begun, ever."""
    return sum(len(_started(line)) for line in lines(attempts))


def _started(line: bytes) -> list[str]:
    return json.loads(line).get("started", [])


def run_plain(arguments: list[str]) -> None:
    """One process, nothing broken: the pictures to compare with."""
    subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate.py"), *arguments],
        cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True,
    )  # fmt: skip
