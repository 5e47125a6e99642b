"""What a plan says of a rank's device is what the device's allocator counted at the peak, within 5 %: measured on
software accelerators, where every byte is counted."""

import json
from pathlib import Path

import pytest

from runner.components.directory import directory_of
from runner.config import load_config
from runner.job.first_request import first_request
from runner.plan.machine import GIB, Machine, Rates
from runner.plan.model import model_of
from runner.plan.planning import planned
from runner.plan.rehearsal import rehearse
from tests.accelerator.test_soft_generate import PLACEMENTS
from tests.distributed.test_generate import ROOT, launch

RECIPE = ROOT / "configs" / "generate.yaml"
JOB = ["job.prompt=a fox", "job.images_per_prompt=2", "job.call.num_inference_steps=2", "job.group=1"]


def peaks(folder: Path, ranks: int) -> dict[str, tuple[int, int]]:
    """By placement: bytes of a rank, planned, and measured of the one that took most."""
    words = {name: [f"placement.default.{option}" for option in options] for name, options in PLACEMENTS.items()}
    jobs = [[str(RECIPE), *JOB, *own, f"job.output={folder / name}"] for name, own in words.items()]
    listing = folder / "jobs"
    listing.write_text("\n".join(map(json.dumps, jobs)))
    result = launch(ranks, ROOT / "tests" / "accelerator" / "many_jobs_on_soft.py", str(listing))
    assert result.returncode == 0, result.stderr
    found = {}
    for name, own in words.items():
        told = json.loads((folder / name / "run.json").read_text())
        found[name] = (_planned([*JOB, *own], ranks), max(rank["peak_device_bytes"] for rank in told["ranks"]))
    return found


def _planned(words: list[str], ranks: int) -> int:
    config = load_config(RECIPE, words)
    directory = directory_of(config)
    model = model_of(directory, config)
    workload = rehearse(model, directory, *first_request(config.job, directory.pipeline))
    return planned(model, config, workload, Machine(ranks, 1, GIB, GIB), Rates()).needed.device


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_peak_is_as_planned(ranks: int, soft_is_built: None, tmp_path: Path) -> None:
    found = peaks(tmp_path, ranks)
    off = {name: f"{plan / seen - 1:+.1%} {(plan, seen)}" for name, (plan, seen) in found.items()}
    assert not {name: off[name] for name, (plan, seen) in found.items() if abs(plan / seen - 1) > 0.05}
