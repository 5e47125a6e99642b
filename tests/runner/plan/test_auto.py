"""placement=auto: the plan places what fits and is quickest, the pictures are those of any placement, and a run that
goes on keeps the choice."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import runner.plan.check
from runner.config import Rest, load_config
from runner.errors import UserError
from runner.run import run
from runner.world import World
from tests.distributed.placed import joined
from tests.ranks import World as TestWorld
from tests.ranks import on_ranks
from weights import room

MIB = 2**20
RECIPE = Path(__file__).resolve().parents[3] / "configs" / "generate.yaml"


def words(out: Path, *more: str) -> list[str]:
    job = [
        "job.prompt=a fox",
        "job.call.num_inference_steps=2",
        "job.format=npy",
        "job.report=false",
        "job.images_per_prompt=1",
    ]
    return [*job, "job.format=npy", "job.report=false", f"job.output={out}", *more]


def have(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Host memory that is free, as the plan sees it."""
    monkeypatch.setattr(runner.plan.check, "available_room", lambda: room.Room(num_bytes, "this test"))


def made(out: Path) -> tuple[dict[str, Any], str]:
    (file,) = (out / "images").glob("*.npy")
    return json.loads((out / "run.json").read_text()), hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def cpu_world() -> World:
    return World(0, 1, torch.device("cpu"))


def test_what_fits_stays_and_what_does_not_comes_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model has 18.7 MiB of weights; its calls hold up to 5 MiB."""
    pixels = {}
    for name, memory in (("ample", 200), ("small", 20)):
        have(monkeypatch, memory * MIB)
        assert run(load_config(RECIPE, words(tmp_path / name, "placement=auto")), cpu_world) == 0
        told, pixels[name] = made(tmp_path / name)
        rests = {component["placement"].split(", ")[1] for component in told["components"].values()}
        assert rests == {"device"} if name == "ample" else "disk" in rests
        assert told["plan"]["host_bytes"] <= memory * MIB
        assert told["plan"]["counts"] == "weights and activations"
        said = "all stays on the device" if name == "ample" else "placement."
        assert f"placement=auto: {said}" in capsys.readouterr().err
    assert pixels["ample"] == pixels["small"], "placements move no bits"


def test_a_run_that_goes_on_keeps_the_choice_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    def choice(memory: int, seed: int) -> str:
        have(monkeypatch, memory * MIB)
        given = words(tmp_path / "out", "placement=auto", f"job.images_per_prompt={seed}")
        assert run(load_config(RECIPE, given), cpu_world) == 0
        return json.dumps(json.loads((tmp_path / "out" / "run.json").read_text())["plan"]["choice"]["placement"])

    first = choice(20, 1)
    assert choice(200, 2) == first
    assert ": as the run before" in capsys.readouterr().err
    (tmp_path / "out" / "run.json").write_text(json.dumps({"plan": {"choice": {"placement": 7}}}))
    other = choice(200, 3)
    assert other != first and "as the run before" not in capsys.readouterr().err, "a damaged one is none"
    assert choice(20, 4) != other
    assert "not that of the run before, since each node needs" in capsys.readouterr().err


def test_nothing_fits_into_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_world: World) -> None:
    have(monkeypatch, MIB)
    with pytest.raises(UserError, match="placement=auto: no placement of this model fits"):
        run(load_config(RECIPE, words(tmp_path / "out", "placement=auto")), cpu_world)
    assert not (tmp_path / "out").exists()


def test_a_component_of_its_own_placement_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_world: World
) -> None:
    have(monkeypatch, 200 * MIB)
    config = load_config(RECIPE, words(tmp_path / "out", "placement=auto", "placement.vae.rest=disk"))
    assert {name: one.rest for name, one in config.placement.items()} == {"default": Rest.auto, "vae": Rest.disk}
    assert run(config, cpu_world) == 0
    told, _ = made(tmp_path / "out")
    assert told["components"]["vae"]["placement"] == "replicate, disk"
    assert set(told["plan"]["choice"]["placement"]) == {"text_encoder", "transformer"}


def test_auto_replaces_what_a_recipe_says(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("placement: {default: {share: shard}, vae: {rest: host}}")
    assert load_config(recipe, ["placement=auto"]).placement["default"].rest is Rest.auto
    assert set(load_config(recipe, ["placement=auto"]).placement) == {"default"}
    recipe.write_text("placement: auto")
    assert load_config(recipe, []).placement["default"].rest is Rest.auto
    with pytest.raises(UserError, match="rest=auto chooses the share too"):
        load_config(recipe, ["placement.default.share=shard"])
    with pytest.raises(UserError, match="placement"):
        load_config(recipe, ["placement=host"])


@on_ranks(2)
def test_all_ranks_place_as_rank_0_says(world: TestWorld) -> None:
    """However much each of them sees free: the least counts."""
    with pytest.MonkeyPatch.context() as patch:
        have(patch, 34 * MIB if world.rank else 900 * MIB)  # both ranks' own weights alone would take 37
        assert run(load_config(RECIPE, words(world.tmp_path / "out", "placement=auto")), joined(world)) == 0
    told, _ = made(world.tmp_path / "out")
    assert any("replicate, device" not in component["placement"] for component in told["components"].values())
    assert told["plan"]["choice"]["ranks"] == 2
