"""The batch script on a real Slurm of two nodes: whatever ends a job, it goes on where it was, and leaves nothing."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner.output.call_log import count_records
from tests import tiny
from tests.slurm.nodes import processes_with, wait_until
from tests.slurm.slurm import Slurm

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "scripts" / "slurm" / "generate.sbatch")
TWO_NODES = ("-N", "2", "--mem=100")
TIMEOUT = 8


@dataclass
class Bench:
    """A job's arguments and folder, and how to submit it as a user does."""

    cluster: Slurm
    arguments: list[str]
    environment: dict[str, str]
    folder: Path
    jobs: list[str] = field(default_factory=list)

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def submit(self, *options: str, pictures: int, extra: tuple[str, ...] = ()) -> str:
        keys = [f"job.images_per_prompt={pictures // 2}", f"job.timeout_seconds={TIMEOUT}", f"job.output={self.output}"]
        job = self.cluster.submit(
            *options, f"--output={self.folder}/%x-%j.out", SCRIPT, *self.arguments, *keys, *extra,
            cwd=ROOT, env={**self.environment, "RANKS_PER_NODE": "1"},
        )  # fmt: skip
        self.jobs.append(job)
        return job

    def lines(self, output: Path | None = None) -> list[dict[str, Any]]:
        """Whole lines of the manifest so far."""
        manifest = (output or self.output) / "manifest.jsonl"
        text = manifest.read_text() if manifest.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait_for_lines(self, count: int) -> None:
        wait_until(lambda: len(self.lines()) >= count, 90, f"{count} pictures; {self.log()[-2000:]}")

    def state(self) -> str:
        return json.loads((self.output / "run.json").read_text())["state"]

    def log(self) -> str:
        return "".join(file.read_text() for file in sorted(self.folder.glob("*.out")))

    def ranks(self) -> list[psutil.Process]:
        """The ranks' processes, without their agents and srun."""
        found = processes_with(f"job.output={self.output}")
        return [process for process in found if "scripts/generate.py" in process.cmdline()[1:3]]

    def check_nothing_left(self, killed: int = 0) -> None:
        """No process, and no temporary file but one for each killed rank: it may have been writing a picture."""
        wait_until(lambda: not processes_with(f"job.output={self.output}"), 15, "the last process")
        assert len(list(self.output.rglob(".*"))) <= killed, "temporary files"
        kept = [file for job in self.jobs for file in ROOT.glob(f"*slurm-st*-{job}.*")]
        assert not kept

    def check_complete(self, pictures: int) -> None:
        made = self.lines()
        assert len(made) == len({line["id"] for line in made}) == pictures
        assert len(list((self.output / "images").iterdir())) == pictures
        assert self.state() == "done"
        self.check_nothing_left()


@pytest.fixture
def bench(cluster: Slurm, job: list[str], environment: dict[str, str], tmp_path: Path) -> Bench:
    return Bench(cluster, job, environment, tmp_path)


def started(bench: Bench) -> list[str]:
    """Ids in the order in which they were begun."""
    lines = (bench.output / "attempts.jsonl").read_text().splitlines()
    return [id for line in lines for id in json.loads(line).get("started", [])]


def test_a_job_on_two_nodes(bench: Bench) -> None:
    told = bench.cluster.run("sbatch", "--test-only", *TWO_NODES, SCRIPT, "configs/generate.yaml", "job.seed=1")
    assert "to start at" in told
    job = bench.submit(*TWO_NODES, pictures=6)
    bench.cluster.wait_for(job, "COMPLETED", "FAILED")
    assert bench.cluster.job(job)["ExitCode"] == "0:0", bench.log()
    bench.check_complete(6)
    assert {line["rank"] for line in bench.lines()} == {0, 1}


def test_a_log_that_a_person_can_read_of_a_placement_that_the_plan_chose(bench: Bench) -> None:
    """How the job stands comes now and then, in whole lines: a bar that moves would fill a log with one long one."""
    job = bench.submit(*TWO_NODES, pictures=20000, extra=("placement=auto",))
    bench.wait_for_lines(4)
    standing = re.compile(r"\d+ of 20000 made, [\d.]+ an? (second|minute|hour), [\w ]+ left \| \w+.*")
    wait_until(lambda: standing.search(bench.log()), 90, "a line that says how the job stands")
    bench.cluster.run("scancel", job)
    bench.cluster.wait_for(job, "CANCELLED")
    log = bench.log()
    assert "\r" not in log and "\x1b" not in log
    line = next(line for line in log.splitlines() if standing.search(line))
    assert len(line) < 160 and "Warning" not in log, log
    run = json.loads((bench.output / "run.json").read_text())
    plan = run["plan"]
    assert plan["choice"]["ranks"] == 2 and plan["counts"] == "weights and activations", plan
    assert {one["rest"] for one in plan["choice"]["placement"].values()} == {"device"}, plan
    assert {line["rank"] for line in bench.lines()} == {0, 1}
    bench.check_nothing_left()


def test_usr1_drains_requeues_and_goes_on_with_nothing_redone(bench: Bench) -> None:
    job = bench.submit(*TWO_NODES, pictures=120)
    bench.wait_for_lines(6)
    bench.cluster.run("scancel", "-s", "USR1", "-b", job)  # what Slurm sends before the time limit
    bench.cluster.start_now(job)
    drained = len(bench.lines())
    assert 6 <= drained < 120 and bench.state() == "stopped", bench.log()
    bench.cluster.wait_for(job, "COMPLETED", "FAILED")
    bench.check_complete(120)
    assert len(started(bench)) == 120, "each request was begun once"
    assert bench.cluster.job(job)["Restarts"] == "1"


def test_scancel_leaves_nothing_and_does_not_requeue(bench: Bench) -> None:
    job = bench.submit(*TWO_NODES, pictures=2000)
    bench.wait_for_lines(4)
    bench.cluster.run("scancel", job)
    bench.cluster.wait_for(job, "CANCELLED")
    bench.check_nothing_left()
    time.sleep(1)
    assert bench.cluster.job(job)["JobState"] == "CANCELLED"
    ids = {line["id"] for line in bench.lines()}
    assert len(ids) == len(bench.lines()) and bench.state() == "stopped"


@pytest.mark.parametrize(
    ("breaking", "seconds"),
    [
        pytest.param(lambda rank: rank.kill(), 10, id="killed"),
        pytest.param(lambda rank: rank.suspend(), TIMEOUT + 10, id="stopped"),
    ],
)
def test_a_broken_rank_ends_the_job_which_is_requeued(
    bench: Bench, breaking: Callable[[psutil.Process], None], seconds: float
) -> None:
    job = bench.submit(*TWO_NODES, pictures=2000)
    bench.wait_for_lines(4)
    ranks = bench.ranks()
    assert len(ranks) == 2, ranks
    breaking(ranks[1])
    took = wait_until(lambda: not bench.ranks(), seconds, "all ranks gone")
    bench.cluster.wait_for(job, "PENDING", "COMPLETING")
    bench.cluster.run("scancel", job)
    print(f"\nranks gone after {took:.1f} s")
    assert bench.state() == "fault" and "fault: rank" in bench.log()
    bench.cluster.wait_for(job, "CANCELLED")
    bench.check_nothing_left(killed=1)


def test_a_preempted_job_goes_on_after_the_other(bench: Bench) -> None:
    job = bench.submit(*TWO_NODES, pictures=120)
    bench.wait_for_lines(6)
    command = ["--partition=high", "-N", "2", "--exclusive", "--wrap=sleep 2", f"--output={bench.folder}/other"]
    other = bench.cluster.submit(*command, cwd=ROOT, env=bench.environment)
    bench.cluster.wait_for(other, "COMPLETED")
    bench.cluster.start_now(job)
    assert len(bench.lines()) < 120, "it was preempted in the middle"
    bench.cluster.wait_for(job, "COMPLETED", "FAILED")
    bench.check_complete(120)


def test_a_long_request_that_is_preempted_three_times_is_one_picture_and_the_work_of_one(bench: Bench) -> None:
    """No preemption leaves it the time to finish: it stops after its current call, and goes on there."""
    steps = 900
    row = {"prompt": "a red fox", **tiny.FAMILIES["pixart"].call, "height": 128, "width": 128}
    prompts = bench.folder / "long.jsonl"
    prompts.write_text(json.dumps({**row, "num_inference_steps": steps}) + "\n")
    keys = (f"job.prompts={prompts}", "job.resume_inside=true", "job.grace_seconds=3")
    job = bench.submit(*TWO_NODES, pictures=2, extra=keys)

    def records() -> int:
        return sum(count_records(log) for log in (bench.output / "calls").glob("*.log"))

    kept: list[int] = [0]
    computed: list[int] = []
    for _ in range(3):
        wait_until(lambda: records() > kept[-1] + 50, 90, f"calls; {bench.log()[-2000:]}")
        command = ["--partition=high", "-N", "2", "--exclusive", "--wrap=sleep 1", f"--output={bench.folder}/other"]
        other = bench.cluster.submit(*command, cwd=ROOT, env=bench.environment)
        bench.cluster.wait_for(other, "COMPLETED")
        kept.append(records())
        ranks = json.loads((bench.output / "run.json").read_text())["ranks"]
        computed.append(sum(rank["call_log"]["calls_logged"] for rank in ranks))
        assert bench.state() == "stopped" and not bench.lines(), bench.log()
        bench.cluster.start_now(job)
    bench.cluster.wait_for(job, "COMPLETED", "FAILED", seconds=180)
    ranks = json.loads((bench.output / "run.json").read_text())["ranks"]
    computed.append(sum(rank["call_log"]["calls_logged"] for rank in ranks))
    print(f"\nkept {kept[1:]}, computed {computed}")
    bench.check_complete(1)
    assert sum(computed) == steps and kept == sorted(set(kept)) and not (bench.output / "calls").exists()
    assert bench.cluster.job(job)["Restarts"] == "3"


def test_an_array_shares_out_the_prompts(bench: Bench) -> None:
    job = bench.submit("-N", "1", "--exclusive", "--array=0-1", "--mem=100", pictures=6)
    for task in ("_0", "_1"):
        bench.cluster.wait_for(f"{job}{task}", "COMPLETED", "FAILED")
    parts = [{line["id"] for line in bench.lines(bench.output / f"part-{i}-of-2")} for i in (1, 2)]
    assert [len(part) for part in parts] == [3, 3] and not parts[0] & parts[1], bench.log()
    names = {file.name for i in (1, 2) for file in (bench.output / f"part-{i}-of-2" / "images").iterdir()}
    assert {name[:4] for name in names} == {f"{i:04d}" for i in range(6)}, "numbered as in the whole list"


def test_a_lost_node_is_noticed_and_the_job_goes_on(bench: Bench) -> None:
    """Last: it takes a node away. Slurm requeues the job by itself (NODE_FAIL)."""
    job = bench.submit(*TWO_NODES, pictures=120)
    bench.wait_for_lines(6)
    bench.cluster.lose_node(2)
    try:
        took = wait_until(lambda: not bench.ranks(), TIMEOUT + 10, "all ranks gone")
    finally:
        bench.cluster.return_node(2)
    print(f"\nranks of the other node gone after {took:.1f} s")
    bench.cluster.start_now(job)
    bench.cluster.wait_for(job, "COMPLETED", "FAILED")
    bench.check_complete(120)
