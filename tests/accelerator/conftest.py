"""The software accelerator runs in processes of its own: an accelerator is a process's for good."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.accelerator import soft
from tests.ranks import Worlds

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def soft_is_built() -> None:
    """The accelerator's library, built once for all processes, and kept for the next session."""
    if missing := soft.missing_tools():
        pytest.skip(f"the software accelerator is built with {' and '.join(missing)}, which this machine does not have")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from tests.accelerator import soft; soft.register()"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert made.returncode == 0, made.stderr


@pytest.fixture
def path(family: str, tiny_root: Path) -> Path:
    """The family's directory; not built on the ranks: there, transformers writes weights on rank 0 only."""
    return tiny.build(family, tiny_root)


@pytest.fixture(scope="package", autouse=True)
def soft_worlds_end_here(worlds: Worlds) -> Iterator[None]:
    yield
    worlds.close_soft()
