"""What torch reads when it starts is set before that, and never over what the user set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.generate import leave_ends_to_the_watch

ROOT = Path(__file__).resolve().parents[2]
LOOK = """
import os, sys
sys.path.insert(0, "scripts")
import generate
assert "torch" not in sys.modules
generate.set_allocator(os.environ)
import torch
torch.zeros(1)
print(torch._C._accelerator_getAllocatorSettings())
"""


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "expandable_segments:True,pinned_max_round_threshold_mb:1"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
    ],
)
def test_torch_starts_with_the_settings(given: dict[str, str], found: str) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.endswith("ALLOC_CONF")}
    environment = {**plain, **given, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LOOK]
    seen = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert seen.stdout.split() == [found]


def test_torchs_own_watchdog_does_not_end_a_process_unless_the_user_wants_it() -> None:
    plain: dict[str, str] = {}
    leave_ends_to_the_watch(plain)
    assert plain == {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}
    wanted = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "3", "TORCH_NCCL_ENABLE_MONITORING": "1"}
    leave_ends_to_the_watch(given := dict(wanted))
    assert given == wanted
