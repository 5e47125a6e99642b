"""scripts/plan.py says what fits before anything is there: from configurations alone, as an exit code."""

import shutil
import time
from pathlib import Path

import pytest

from scripts.plan import main


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, emoji: Path) -> Path:
    """A directory without weights, as a login node may have it."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(emoji, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    return folder


def test_configurations_are_enough(bare: Path, capsys: pytest.CaptureFixture[str], emoji: Path) -> None:
    assert main([f"model.path={bare}", "--gpus", "8"]) == 0
    alone = capsys.readouterr().out
    assert "sized from configurations alone" in alone
    assert main([f"model.path={emoji}", "--gpus", "8"]) == 0
    whole = capsys.readouterr().out
    assert whole == "".join(line for line in alone.splitlines(keepends=True) if not line.startswith("note"))


def test_what_does_not_fit_is_said_with_what_does(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [f"model.path={bare}", "--device-memory", "1038MiB"]
    assert main(small) == 1
    told = capsys.readouterr().out
    assert "it does not fit: each GPU needs" in told
    [fix] = [line for line in told.splitlines() if line.endswith(" fits") and line.startswith("placement.")]
    assert main([*small, *fix.split()[:-1]]) == 0


def test_a_thousand_ranks_take_less_than_ten_seconds(bare: Path) -> None:
    """Of processor time: from configurations to the plan, and the search for what fits where it does not."""
    start = time.process_time()
    ranks = ["--gpus", "8", "--nodes", "128", "placement.default.share=shard"]
    assert main([f"model.path={bare}", *ranks]) == 0
    assert main([f"model.path={bare}", *ranks, "--device-memory", "1030MiB"]) == 1
    assert time.process_time() - start < 10


def test_nothing_fits_into_nothing(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"model.path={bare}", "--device-memory", "1GiB"]) == 1
    assert "no placement of this model fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpus", "0"], "--gpus and --nodes are 1 or more"),
        (["--device-memory", "80 apples"], "no size of memory"),
        (["--gpus", "8", "mesh.shard=3"], "mesh.shard=2 does"),
        (["placement.transformer.rest=host", "placement.transformer.resident_blocks=99"], "placement.transformer"),
        (["placement.unet.rest=host"], "has no such component"),
    ],
)
def test_a_mistake_is_an_error(bare: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"model.path={bare}", *words]) == 2
    assert told in capsys.readouterr().err
