"""Two nodes without Slurm: whatever breaks, every process is gone within the timeout and ten seconds, agents too.

torchrun alone leaves an agent behind when a link stays down, and all ranks of a node whose agent is killed.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.slurm.nodes import Nodes, wait_until

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 10


@dataclass(frozen=True)
class Running:
    """A job over both nodes: the agent and the one rank of each, by node."""

    box: Nodes
    agents: dict[int, psutil.Process]
    ranks: dict[int, psutil.Process]

    def processes(self) -> dict[str, psutil.Process]:
        named = {f"agent {node}": process for node, process in self.agents.items()}
        return {**named, **{f"rank {node - 1}": process for node, process in self.ranks.items()}}


def start(box: Nodes, arguments: list[str], environment: dict[str, str], output: Path) -> Running:
    roots = {}
    for node in (1, 2):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        options = ["--max-restarts", "0", "--shutdown-timeout", "5", "--rdzv-backend", "c10d", "--rdzv-id", output.name]
        endpoint = ["--rdzv-endpoint", "n1:29511", str(ROOT / "scripts" / "generate.py")]
        command = [*torchrun, *options, *endpoint, *arguments, f"job.output={output}", f"job.timeout_seconds={TIMEOUT}"]
        log = output.parent / f"n{node}.log"
        roots[node] = box.start(node, command, log=log, cwd=ROOT, env=environment)
    manifest = output / "manifest.jsonl"
    wait_until(lambda: manifest.exists() and manifest.read_text().count("\n") > 3, 300, "the first pictures")
    below = {node: psutil.Process(root.pid).children(recursive=True) for node, root in roots.items()}
    ranks = {node: _one(found, lambda line: "torch.distributed.run" not in line) for node, found in below.items()}
    return Running(box, {node: ranks[node].parent() for node in ranks}, ranks)


def _one(processes: list[psutil.Process], fits: Callable[[str], bool]) -> psutil.Process:
    lines = {process: " ".join(process.cmdline()) for process in processes}
    (found,) = [p for p, line in lines.items() if "generate.py" in line and "bash -c" not in line and fits(line)]
    return found


FAULTS: dict[str, tuple[Callable[[Running], None], float]] = {
    # what is done, and within how many seconds every process has to be gone
    "rank 0 killed": (lambda job: job.ranks[1].kill(), 10),
    "rank 1 killed": (lambda job: job.ranks[2].kill(), 10),
    "rank 1 stopped": (lambda job: job.ranks[2].suspend(), TIMEOUT + 10),
    "agent of the store's node killed": (lambda job: job.agents[1].kill(), 10),
    "agent of the other node killed": (lambda job: job.agents[2].kill(), 10),
    "link down for good": (lambda job: job.box.link(2, "down"), TIMEOUT + 10),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_process_is_gone(
    fault: str, box: Nodes, job: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "".join(letter for letter in fault if letter.isalnum())
    running = start(box, [*job, "job.images_per_prompt=2000"], environment, output)
    processes = running.processes()
    break_it, limit = FAULTS[fault]
    began = time.monotonic()
    try:
        break_it(running)
        gone: dict[str, float] = {}
        while len(gone) < len(processes) and time.monotonic() - began < limit + 20:
            for name, process in processes.items():
                if name not in gone and not _is_alive(process):
                    gone[name] = time.monotonic() - began
            time.sleep(0.05)
    finally:
        box.link(2, "up")
        for process in processes.values():
            if _is_alive(process):
                process.kill()
    print(f"\n{fault:34}", *(f"{name} {gone.get(name, float('inf')):5.1f} s " for name in processes))
    assert set(gone) == set(processes) and max(gone.values()) < limit
    report = json.loads((output / "run.json").read_text())
    assert report["state"] == "fault" and report["fault"]["host"] in ("n1", "n2")
    logs = (tmp_path / "n1.log").read_text() + (tmp_path / "n2.log").read_text()
    spoken = [line for line in logs.splitlines() if line.startswith("fault: ")]
    # Where the network is cut, each half has its own word, unless it sees the other's on the disk.
    assert len(spoken) in ([1, 2] if fault == "link down for good" else [1]), spoken
    assert report["fault"]["cause"] in logs


def test_a_link_that_comes_back_costs_nothing(
    box: Nodes, job: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    running = start(box, [*job, "job.images_per_prompt=60"], environment, tmp_path / "out")
    box.link(2, "down")
    time.sleep(3)
    box.link(2, "up")
    wait_until(lambda: not any(map(_is_alive, running.processes().values())), 90, "the end of the job")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == "done"


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
