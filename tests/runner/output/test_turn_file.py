"""Of a group that was killed, only who ran has been tried in vain."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.output.folder import Folder
from runner.output.manifest import Manifest
from runner.output.turn_file import LastTurn, TurnFile, last_turn


def test_a_killed_process_leaves_whose_turn_it_was(tmp_path: Path) -> None:
    file = Folder(tmp_path).turn_of(0)
    dies = (
        "import os, signal, sys; from pathlib import Path; from runner.output.turn_file import TurnFile\n"
        "file = TurnFile(Path(sys.argv[1]), ['a', 'b', 'c'])\n"
        "for id in 'abcb': file.running(id)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", dies, file], env={**os.environ, "PYTHONPATH": "."}).returncode == -9
    assert last_turn(file) == LastTurn(["a", "b", "c"], "b")
    manifest = Manifest(Folder(tmp_path))
    manifest.begin(["a", "b", "c", "of another rank"])
    assert manifest.recover().attempts == {"a": 0, "b": 1, "c": 0, "of another rank": 1}
    assert not file.exists() and manifest.recover().attempts["a"] == 0
    manifest.begin(["a", "c"])
    assert manifest.recover().attempts["a"] == 1, "a later try counts again"


def test_ranks_that_make_requests_together_may_be_at_different_ones(tmp_path: Path) -> None:
    manifest = Manifest(Folder(tmp_path))
    manifest.begin(["a", "b", "c"])
    for rank, running in enumerate("ab"):
        TurnFile(manifest.folder.turn_of(rank), ["a", "b", "c"]).running(running)
    assert manifest.recover().attempts == {"a": 1, "b": 1, "c": 0}


def test_nothing_is_left_of_a_group_that_ends(tmp_path: Path) -> None:
    file = TurnFile(tmp_path / "turn", ["a"])
    file.running("a")
    file.close()
    file.running("a")
    assert list(tmp_path.iterdir()) == [] and last_turn(tmp_path / "turn") is None


@pytest.mark.parametrize("content", [b"", b"a\n", b"a\n7\n", b"a\n[7]\n", b"\xff\n{\n", b"a" * 64 + b'\n["a", "'])
def test_half_a_file_blames_nobody_and_clears_nobody(content: bytes, tmp_path: Path) -> None:
    manifest = Manifest(Folder(tmp_path))
    manifest.begin(["a"])
    manifest.folder.turn_of(3).write_bytes(content)
    assert last_turn(manifest.folder.turn_of(3)) is None and manifest.recover().attempts == {"a": 1}


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    TurnFile(tmp_path / "missing" / "turn", ["a"]).running("a")
