"""Jobs broken at random moments and started again: every picture once, bit for bit, and nothing else."""

import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import pytest

from tests import tiny
from tests.distributed import chaos

NUM_REQUESTS = 80
SEED = int(os.environ.get("CHAOS_SEED", "20"))
NUM_RUNS = int(os.environ.get("CHAOS_RUNS", "33"))
# One run makes requests one by one, the next one in groups that share what comes up, from the disk or from each other.
ARRANGEMENTS = (
    ["job.group=3", "placement.transformer.rest=disk"],
    ["job.group=1"],
    ["job.group=3", "placement.transformer.share=shard"],
)


@pytest.fixture(scope="module")
def job(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a job of many small requests."""
    family = tiny.FAMILIES["pixart"]
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"prompt": prompt, **family.call} for prompt in family.prompts[:2]]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = prompts.with_name("recipe.yaml")
    recipe.write_text(f"job: {{images_per_prompt: {NUM_REQUESTS // len(rows)}}}\n")
    return [str(recipe), f"model.path={tiny.build(family.name, tiny_root)}", f"job.prompts={prompts}"]


@pytest.fixture(scope="module")
def expected(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """File name -> bytes, of an uninterrupted run."""
    output = tmp_path_factory.mktemp("plain")
    chaos.run_plain([*job, f"job.output={output}"])
    return contents(output)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that a fault can fill: a tmpfs, where this process may mount one."""
    with _small_disk(tmp_path) as disk:
        yield disk


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    disk = Path(tempfile.mkdtemp(dir=folder))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False)
    try:
        yield disk
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", disk], check=True)


def contents(output: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (output / "images").iterdir()}


def check_done(output: Path, expected: dict[str, bytes]) -> None:
    manifest = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in manifest}) == len(manifest) == len(expected)
    assert sorted(Path(line["file"]).name for line in manifest) == sorted(expected)
    assert contents(output) == expected
    assert chaos.leftovers(output) == []
    assert json.loads((output / "run.json").read_text())["state"] == "done"


def _shared_memory() -> set[str]:
    """Named shared memory; the semaphores are those of other test processes that are running."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.")}


def run_chaos(faults: list[str], job: list[str], disk: Path, expected: dict[str, bytes]) -> list[chaos.Row]:
    """Break a job with one fault after the other; whenever it is done, check it and begin anew."""
    rng = random.Random(SEED)
    shared_memory = _shared_memory()
    rows: list[chaos.Row] = []
    number = 0
    for name, arranged in zip(faults, cycle(ARRANGEMENTS), strict=False):
        output = disk / f"out{number}"
        rows.append(chaos.broken_run(output, [*job, *arranged], getattr(chaos, name), rng))
        print(chaos.table(rows[-1:]).splitlines()[-1], flush=True)
        assert rows[-1].at_once >= (3 if "job.group=3" in arranged else 1), f"not in groups: {rows[-1]}, {arranged}"
        if len(chaos.lines(output / "manifest.jsonl")) > NUM_REQUESTS * 0.6:
            chaos.run_until_done(output, [*job, *rng.choice(ARRANGEMENTS)], num_ranks=rng.choice([1, 2]))
            check_done(output, expected)
            shutil.rmtree(output)  # the disk is small
            number += 1
    output = disk / f"out{number}"
    if output.exists():
        chaos.run_until_done(output, job)
        check_done(output, expected)
    assert _shared_memory() <= shared_memory
    print(f"seed {SEED}\n{chaos.table(rows)}")
    return rows


@pytest.mark.slow
def test_a_broken_job_is_completed_bit_for_bit(job: list[str], small_disk: Path, expected: dict[str, bytes]) -> None:
    """One run each of the faults that take the longest way round; all of them in the one that is run by hand."""
    faults = ["worker_killed", "disk_full", "torn_line"]
    if not os.path.ismount(small_disk):
        faults.remove("disk_full")
    rows = run_chaos(faults, job, small_disk, expected)
    assert {row.state for row in rows} <= {"running", "fault", "stopped", "done"}


@pytest.mark.slow
@pytest.mark.chaos
def test_broken_runs(job: list[str], small_disk: Path, expected: dict[str, bytes]) -> None:
    """Run with: pytest -s -m chaos tests/distributed/test_chaos.py. CHAOS_SEED chooses other moments, CHAOS_RUNS fewer
    or more runs."""
    if not os.path.ismount(small_disk):
        pytest.skip("no permission to mount a small disk")
    faults = [fault.__name__ for fault in chaos.FAULTS] * -(-NUM_RUNS // len(chaos.FAULTS))
    random.Random(SEED).shuffle(faults)
    faults = faults[:NUM_RUNS]
    rows = run_chaos(faults, job, small_disk, expected)
    assert len(rows) == NUM_RUNS
    slowest = max((row for row in rows if row.seconds is not None), key=lambda row: row.seconds or 0)
    assert slowest.seconds is not None and slowest.seconds < chaos.TIMEOUT + 10, slowest
