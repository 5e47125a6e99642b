"""A job whose weights do not fit is refused before any is loaded, with what fits: and that runs."""

import json
from pathlib import Path

import pytest
import torch

import runner.plan.check
from runner.config import load_config
from runner.errors import UserError
from runner.run import run
from runner.world import World
from tests.outcomes import why
from weights import room

MIB = 2**20
RECIPE = Path(__file__).resolve().parents[3] / "configs" / "generate.yaml"


def words(emoji: Path, tmp_path: Path) -> list[str]:
    job = ["job.prompt=a fox", "job.call.num_inference_steps=1", f"job.output={tmp_path / 'out'}"]
    return [f"model.path={emoji}", *job]


def have(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Host memory that is free, as the check sees it."""
    monkeypatch.setattr(runner.plan.check, "available_room", lambda: room.Room(num_bytes, "this test"))


def test_what_does_not_fit_is_refused_with_what_does(
    emoji: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_world: World
) -> None:
    have(monkeypatch, 10 * MIB)
    given = words(emoji, tmp_path)
    refused = r"each node needs 18\.7 MiB of host memory, and has 10\.0 MiB: placement\."
    with pytest.raises(UserError, match=refused) as raised:
        run(load_config(RECIPE, given), cpu_world)
    assert not (tmp_path / "out").exists()
    fix = str(raised.value).rpartition(": ")[2].removesuffix(" fits").split()
    assert run(load_config(RECIPE, [*given, *fix]), cpu_world) == 0, why(tmp_path / "out")


def test_run_json_has_what_was_planned(emoji: Path, tmp_path: Path, cpu_world: World) -> None:
    """Of a rank: all weights are its own on the host, where it computes there."""
    assert run(load_config(RECIPE, words(emoji, tmp_path)), cpu_world) == 0, why(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    plan, components = told["plan"], told["components"]
    stored = sum(component["bytes"] for component in components.values())
    assert stored <= plan["device_bytes"] == plan["host_bytes"] < stored * 1.01, "each weight in aligned memory"
    assert set(plan["by_component"]) == set(components)
    assert (plan["shared_host_bytes"], plan["counts"]) == (0, "weights")


@pytest.fixture
def cpu_world() -> World:
    return World(0, 1, torch.device("cpu"))
