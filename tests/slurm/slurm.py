"""A Slurm of one's own: a controller outside, a daemon in each of two nodes, nothing in /etc."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.slurm.nodes import NUM_NODES, SUBNET, Nodes, wait_until

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "srun")
KILL_WAIT = 3

CONF = """\
ClusterName=box
SlurmctldHost={host}({subnet}.254)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=6
KillWait={kill_wait}
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-{nodes}] NodeAddr={subnet}.[1-{nodes}] CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=10 State=UP
PartitionName=high Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF State=UP
"""


def why_not() -> str | None:
    """Why there is no Slurm here; None when there is."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    packages = "apt-get install slurmctld slurmd slurm-client munge"
    return f"not installed: {', '.join(missing)} ({packages})" if missing else None


class Slurm:
    """The commands a user has, and the hand of an operator."""

    def __init__(self, box: Nodes, root: Path) -> None:
        self.box, self.root = box, root
        self.env = {**os.environ, "SLURM_CONF": str(root / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}

    def run(self, *command: str, check: bool = True) -> str:
        result = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0 or not check, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout + result.stderr

    def submit(self, *arguments: str, cwd: Path, env: dict[str, str]) -> str:
        """sbatch; the job's id."""
        result = subprocess.run(
            ["sbatch", *arguments], env={**env, "SLURM_CONF": self.env["SLURM_CONF"]}, cwd=cwd,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        match = re.search(r"Submitted batch job ([0-9]+)", result.stdout)
        assert match is not None, result.stdout + result.stderr
        return match[1]

    def job(self, job: str) -> dict[str, str]:
        """What scontrol knows of the job, by field."""
        shown = self.run("scontrol", "-o", "show", "job", job)
        return dict(field.partition("=")[::2] for field in shown.split() if "=" in field)

    def wait_for(self, job: str, *states: str, seconds: float = 180) -> float:
        return wait_until(lambda: self.job(job)["JobState"] in states, seconds, f"job {job} {'/'.join(states)}")

    def start_now(self, job: str) -> None:
        """A requeued job waits two minutes."""
        self.wait_for(job, "PENDING")
        time.sleep(2)
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def start(self) -> None:
        for name in ("state", *(f"spool/n{i}" for i in range(1, NUM_NODES + 1))):
            (self.root / name).mkdir(parents=True)
        key = self.root / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        values = {"host": socket.gethostname().partition(".")[0], "root": self.root, "subnet": SUBNET}
        (self.root / "slurm.conf").write_text(CONF.format(**values, nodes=NUM_NODES, kill_wait=KILL_WAIT))
        gres = f"NodeName=n[1-{NUM_NODES}] Name=gpu File=/dev/tty[1-2]\n"  # a real CUDA_VISIBLE_DEVICES
        (self.root / "gres.conf").write_text(gres)
        files = {name: self.root / f"munge{name}" for name in (".key", ".socket", ".pid", ".log", ".seed")}
        options = [f"--{name[1:]}-file={file}" for name, file in files.items() if name != ".socket"]
        self._daemon("munged", "--foreground", *options, f"--socket={files['.socket']}")
        wait_until(files[".socket"].exists, 10, "munged")
        self._daemon("slurmctld", "-D", "-c")
        for i in range(1, NUM_NODES + 1):
            self.start_node(i)
        wait_until(
            lambda: self.run("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == str(NUM_NODES), 30, "idle nodes"
        )

    def start_node(self, node: int) -> None:
        command = ["slurmd", "-D", "-N", f"n{node}", "-f", str(self.root / "slurm.conf")]
        log = self.root / f"node{node}.log"
        self._nodes[node] = self.box.start(node, command, log=log, cwd=self.root, env=self.env)

    def lose_node(self, node: int) -> None:
        """Its link goes down, and everything in it is killed."""
        self.box.link(node, "down")
        self.box.kill(self._nodes[node])

    def return_node(self, node: int) -> None:
        self.box.link(node, "up")
        self.start_node(node)
        shown = ("sinfo", "-h", "-n", f"n{node}", "-p", "main", "-o", "%t")
        # A requeued job may be on it already.
        wait_until(lambda: self.run(*shown).strip() in ("idle", "mix", "alloc"), 60, f"node {node} up")

    def stop(self) -> None:
        self.run("scancel", "--user=root", check=False)
        self.run("scontrol", "shutdown", check=False)
        time.sleep(1)
        for daemon in self._daemons:
            daemon.terminate()
            daemon.wait(20)

    def _daemon(self, *command: str) -> None:
        with (self.root / f"{command[0]}.out").open("ab") as log:
            self._daemons.append(subprocess.Popen(command, stdout=log, stderr=log, env=self.env))


@contextmanager
def slurm(box: Nodes, root: Path) -> Iterator[Slurm]:
    cluster = Slurm(box, root)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
