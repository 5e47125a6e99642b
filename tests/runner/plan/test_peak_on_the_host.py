"""Where ranks compute on the CPU, what a plan says of the process is what the kernel counted at the peak, within 5 %.

The kernel counts what the allocator keeps for later too, and Python's own objects, so the model is one beside which
these are small.
"""

import ctypes
import gc
from pathlib import Path

import pytest
import torch

from runner.components.directory import directory_of
from runner.config import load_config
from runner.errors import ExitCode
from runner.job.first_request import first_request
from runner.plan.machine import GIB, Machine, Rates
from runner.plan.model import model_of
from runner.plan.planning import planned
from runner.plan.rehearsal import rehearse
from runner.run import run
from runner.world import World
from scripts.bench.grown import write_grown
from tests.memory import peak_anonymous_memory

JOB = ["job.prompt=a fox", "job.call.num_inference_steps=2", "job.call.height=256", "job.call.width=256"]
CASES = {
    "resident": [],
    "disk": ["placement.transformer.rest=disk", "placement.text_encoder.rest=disk"],
    "a wide window": ["placement.transformer.rest=disk", "placement.transformer.window=4"],
}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grown") / "model"
    write_grown(folder, layers=8, heads=48, encoder_layers=4, encoder_width=512)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_peak_is_as_planned(name: str, grown: Path, tmp_path: Path) -> None:
    words = [*JOB, *CASES[name], f"model.path={grown}", "model.dtype=float32"]
    world = World(0, 1, torch.device("cpu"))
    for number in (1, 2):  # the first brings in code and libraries, which the plan does not count
        config = load_config(None, [*words, f"job.output={tmp_path / str(number)}"])
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with peak_anonymous_memory() as peak:
            assert run(config, world) == ExitCode.DONE
    directory = directory_of(config)
    model = model_of(directory, config)
    workload = rehearse(model, directory, *first_request(config.job, directory.pipeline))
    plan = planned(model, config, workload, Machine(1, 1, 0, 64 * GIB, is_host=True), Rates()).figures()
    assert plan["counts"] == "weights and activations"
    off = plan["host_bytes"] / peak() - 1
    print(f"{name}: planned {plan['host_bytes']:,}, counted {peak():,}, {off:+.1%}")
    assert abs(off) <= 0.05
