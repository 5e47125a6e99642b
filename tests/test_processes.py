"""Tests that hang end, and say where."""

import sys
import threading
import time
from pathlib import Path

import pytest

import tests.ranks
from tests.processes import run_command
from tests.ranks import World, Worlds, on_ranks

# Holds the pipes of the process that started it, as torchrun's ranks do.
STARTS_ANOTHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time\\ntime.sleep(600)'])"


@on_ranks(2)
def is_there(world: World) -> None:
    pass


@on_ranks(2)
def hangs_on_one(world: World) -> None:
    if world.rank == 1:
        threading.Event().wait()


def test_a_command_that_takes_too_long_leaves_nothing_and_says_where_it_stood() -> None:
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"(?s)timed out after 3.*Aborted.*line 2 in <module>"):
        run_command([sys.executable, "-c", STARTS_ANOTHER], timeout=3)
    assert time.monotonic() - began < 60


def test_a_rank_that_hangs_fails_the_test_with_its_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = Worlds()
    try:
        worlds.run(2, is_there.on_each_rank, tmp_path, {})  # starting takes longer
        monkeypatch.setattr(tests.ranks, "LONGEST_S", 2)
        with pytest.raises(pytest.fail.Exception, match=r"(?s)rank 1 of 2: not done after 2 s.*in hangs_on_one"):
            worlds.run(2, hangs_on_one.on_each_rank, tmp_path, {})
    finally:
        worlds.close()
