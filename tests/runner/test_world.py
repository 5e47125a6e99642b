"""What launchers say of a rank's place, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runner.errors import UserError
from runner.world import Place, _has_gloo, first_host, has_collectives, place_in_world

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "n[01-02]",
}


def test_a_plain_python_is_a_world_of_one() -> None:
    assert place_in_world({}) == Place()
    batch_script = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
    assert place_in_world(batch_script) == Place(), "a batch script is no srun step, although it has a SLURM_PROCID"


def test_torchruns_variables_and_sruns_are_read() -> None:
    assert place_in_world(TORCHRUN) == Place(3, 8, 1, ("n1", 29500))
    assert place_in_world(SRUN) == Place(2, 4, 0, ("n01", 23456))
    assert place_in_world({**SRUN, **TORCHRUN}) == Place(3, 8, 1, ("n1", 29500)), "torchrun under srun"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE are set in the environment, but not RANK"),
        ({name: value for name, value in TORCHRUN.items() if name != "MASTER_ADDR"}, "but not MASTER_ADDR"),
        ({**TORCHRUN, "RANK": "8"}, "RANK=8 is no rank of WORLD_SIZE=8"),
        ({**TORCHRUN, "RANK": "two"}, "RANK='two' in the environment is no number"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "started 4 times by mpirun"),
        ({"PMI_SIZE": "4"}, "an MPI launcher"),
        ({name: value for name, value in SRUN.items() if name != "SLURM_LOCALID"}, "SLURM_LOCALID is not set"),
    ],
)
def test_half_a_launch_is_refused_by_name(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        place_in_world(environment)


@pytest.mark.parametrize(
    ("node_list", "host"), [("n1", "n1"), ("n1,n2", "n1"), ("n[03-07,9],m1", "n03"), ("gpu-[7]-ib", "gpu-7-ib")]
)
def test_the_first_host_of_slurms_list(node_list: str, host: str) -> None:
    assert first_host(node_list) == host


def test_what_has_no_collectives_is_known() -> None:
    assert has_collectives(torch.device("cpu")) and has_collectives(torch.device("cuda"))
    assert not has_collectives(torch.device("mps"))


def test_only_a_device_that_gloo_counts_as_its_own_is_bound_to_the_default_group() -> None:
    """Bound, a device must have a backend in every later group, and the ranks' messages have a group of gloo alone."""
    assert _has_gloo(torch.device("cuda"))
    assert not _has_gloo(torch.device("xpu")) and not _has_gloo(torch.device("mps"))


@pytest.mark.slow
def test_a_launch_without_a_rendezvous_ends_with_one_line(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "WORLD_SIZE": "2", "RANK": "0"}
    command = [sys.executable, root / "scripts/generate.py", f"job.output={tmp_path}"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 2 and "MASTER_ADDR" in ended.stderr and len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_ranks_that_do_not_come_end_the_job_with_one_line(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    place = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    command = [sys.executable, root / "scripts/generate.py", f"job.output={tmp_path}", "job.timeout_seconds=2"]
    environment = {**os.environ, "PYTHONPATH": str(root), **place}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 4
    assert ended.stderr.strip().splitlines()[-1].startswith("fault: rank 0 on ") and "2 ranks" in ended.stderr
