"""Constructors whose parameters go to meta leave nothing in the process's address space."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from weights.on_meta import parameters_on_meta

ROOT = Path(__file__).resolve().parents[2]
GROWTH = """
import accelerate
from tests.recipes.real_sizes import MODELS
from weights.on_meta import parameters_on_meta

def size():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))

make = MODELS['ltx-2']['transformer']  # in its real size
before = size()
with {around}:
    make()
print((size() - before) // 1024)
"""


def test_parameters_are_on_meta_and_buffers_are_real() -> None:
    with parameters_on_meta():
        norm = nn.BatchNorm1d(8)
    assert norm.weight.is_meta and torch.equal(norm.running_var, torch.ones(8))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_a_parameter_has_for_a_moment_is_given_back() -> None:
    """accelerate's own context leaves 9 GiB of addresses."""
    assert _growth("parameters_on_meta()") < 256


def _growth(around: str) -> int:
    """MiB by which the address space grows."""
    command = [sys.executable, "-c", GROWTH.format(around=around)]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
