"""Adapters on offloaded components give the bits of resident ones, wherever the weights rest, and leave no trace.

Resident ones are compared with the libraries in test_lora_merge.py and test_lora_dynamic.py.
"""

import functools
import gc
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import offload
from lora import Edits
from offload.placeholder import is_away
from runner.components.resolver import resolve
from runner.config import Leave, load_config
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from runner.world import World as Ranks
from tests import tiny
from tests.distributed.placed import joined
from tests.lora.lora_files import WITH_LOADER, WITHOUT_LOADER, modules_of, open_tiny, save_adapter
from tests.ranks import World, on_ranks

FAMILIES = (*WITH_LOADER, *WITHOUT_LOADER)
ALONE = Ranks(0, 1, torch.device("cpu"))
ADAPTERS = "adapters"  # the folder with a family's two, beside its pipeline
# The active adapters, the scope, and whether they are set ahead, in normal mode, or by the call, in inference mode.
STEPS: list[tuple[dict[str, float], Leave, bool]] = [
    ({"one": 1.0}, Leave.component, False),
    ({"two": 1.5}, Leave.weights, False),
    ({"one": 0.7, "two": -0.4}, Leave.weights, True),
    ({}, Leave.component, False),
]
# Every component is offloaded so; the DiT keeps the resident blocks.
FEW_ROWS = {
    "host": ["rest=host", "window=1", "resident_blocks=1"],
    "disk": ["rest=disk", "window=2"],
}
ROWS = FEW_ROWS | {
    "host, none resident": ["rest=host", "window=2"],
    "host, whole": ["rest=host", "window=all"],
    "disk, one at a time": ["rest=disk", "window=1", "resident_blocks=3"],
    "disk, whole": ["rest=disk", "window=all", "resident_blocks=1"],
}


@dataclass(frozen=True)
class Made:
    """A picture, and the weights of the components that it was made with."""

    picture: np.ndarray
    weights: Mapping[str, torch.Tensor]


def built(family: str, root: Path) -> Path:
    """The family's pipeline, with two adapters beside it; of Flux and SD3, one is for a text encoder too."""
    path = tiny.build(family, root)
    folder = root / ADAPTERS / family
    if not folder.exists():
        pipeline = open_tiny(family, root)
        save_adapter(pipeline, folder / "one", seed=1, text_encoder=family in ("flux", "sd3"))
        save_adapter(pipeline, folder / "two", seed=2, rank=8, alpha=3, use_rslora=True, dtype=torch.bfloat16)
    return path


def opened(path: Path, mode: str, *overrides: str, world: Ranks = ALONE) -> Pipeline:
    folder = path.parent / ADAPTERS / path.name
    adapters = json.dumps([{"path": str(folder / name), "name": name} for name in ("one", "two")])
    settings = [f"model.path={path}", f"lora.adapters={adapters}", f"lora.mode={mode}", *overrides]
    return open_pipeline(load_config(None, settings), world)


def placements(row: str) -> list[str]:
    where = {True: "transformer", False: "default"}
    return [f"placement.{where[option.startswith('resident')]}.{option}" for option in ROWS[row]]


def picture(pipeline: Pipeline, family: str, active: Mapping[str, float]) -> np.ndarray:
    described = tiny.FAMILIES[family]
    prompt = described.prompts[0]
    text = prompt[0] if isinstance(prompt, list) else prompt
    made = pipeline(Request(text, 0, described.call, active, output_type="np"))[0][0]
    return np.asarray(made)


def weights(pipeline: Pipeline) -> dict[str, torch.Tensor]:
    """Of what adapters may change, whole, whatever the placement."""
    modules = modules_of(pipeline.stock)
    return {
        f"{component}.{name}": tensor.clone()
        for component in ("transformer", "text_encoder")
        if component in modules
        for name, tensor in modules[component].state_dict().items()
    }


@functools.cache
def resident(path: Path, mode: str, *overrides: str) -> list[Made]:
    """What each step makes where nothing moves."""
    pipeline = opened(path, mode, *overrides)
    return [Made(picture(pipeline, path.name, active), weights(pipeline)) for active, _, _ in STEPS]


def expect_equal(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert tensor.dtype == wanted[name].dtype and torch.equal(tensor, wanted[name]), name


def expect_resident_bits(pipeline: Pipeline, path: Path, mode: str, *overrides: str) -> None:
    decisions = {leave: resolve(pipeline.components, leave) for leave in Leave}
    for (active, leave, ahead), wanted in zip(STEPS, resident(path, mode, *overrides), strict=True):
        pipeline.decisions = decisions[leave]
        if ahead:
            pipeline.adapters.set(active)
        assert np.array_equal(picture(pipeline, path.name, active), wanted.picture), active
        expect_equal(weights(pipeline), wanted.weights)
        for component in pipeline.components:
            module = component.module
            assert not any(tensor.is_inference() for tensor in (*module.parameters(), *module.buffers()))
            if (offloader := offload.offloader_of(module)) is not None:
                assert offloader.bytes_on_device == offloader.bytes_at_rest


def fingerprint(path: Path) -> dict[Path, tuple[int, str]]:
    files = [file for file in path.rglob("*") if file.is_file()]
    return {file: (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files}


@pytest.mark.parametrize("mode", ["merge", "dynamic"])
@pytest.mark.parametrize(
    ("family", "row"), [(name, row) for name in FAMILIES for row in (ROWS if name == "flux" else FEW_ROWS)]
)
def test_pictures_and_weights_are_the_resident_ones(family: str, row: str, mode: str, tiny_root: Path) -> None:
    path = built(family, tiny_root)
    files = fingerprint(path)
    base = tiny.load_stock(path)
    pipeline = opened(path, mode, *placements(row))
    expect_resident_bits(pipeline, path, mode)
    expect_equal(offload.offloader_of(pipeline.stock.transformer).module.state_dict(), base.transformer.state_dict())
    made = [step.picture for step in resident(path, mode)]
    assert not any(np.array_equal(made[i], made[j]) for i in range(4) for j in range(i)), "each changes the picture"
    assert fingerprint(path) == files


@pytest.mark.parametrize("mode", ["merge", "dynamic"])
@pytest.mark.parametrize("row", ["host", "disk, one at a time"])
def test_bf16_is_rounded_as_in_a_resident_one(row: str, mode: str, tiny_root: Path) -> None:
    path, dtype = built("sd3", tiny_root), "model.dtype=bfloat16"
    expect_resident_bits(opened(path, mode, dtype, *placements(row)), path, mode, dtype)


@pytest.mark.parametrize("rest", ["host", "disk"])
def test_an_adapter_for_a_text_encoder_alone(rest: str, tiny_root: Path) -> None:
    path = built("flux", tiny_root)
    adapter = {"path": str(path.parent / ADAPTERS / "flux/one"), "name": "one", "components": ["text_encoder"]}
    settings = [f"model.path={path}", f"lora={json.dumps([adapter])}"]
    pictures = []
    for placed in ([], [f"placement.text_encoder.rest={rest}"], [f"placement.default.rest={rest}"]):
        pipeline = open_pipeline(load_config(None, [*settings, *placed]), ALONE)
        pictures.append([picture(pipeline, "flux", active) for active in ({"one": 1.0}, {})])
    assert np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[0], pictures[2])
    assert not np.array_equal(*pictures[0])


@pytest.mark.parametrize("mode", ["merge", "dynamic"])
@pytest.mark.parametrize("row", ["host", "disk, one at a time"])
def test_switching_leaves_nothing_behind(row: str, mode: str, tiny_root: Path) -> None:
    """No more tensors after many switches than after the first of each, and what is resident stays where it is."""
    pipeline = opened(built("pixart", tiny_root), mode, *placements(row))

    def held() -> tuple[int, list[int]]:
        gc.collect()
        there = [tensor for tensor in pipeline.stock.transformer.parameters() if not is_away(tensor)]
        num_tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        return num_tensors, [tensor.data_ptr() for tensor in there]

    for active, _, _ in STEPS:
        pipeline.adapters.set(active)
    first = held()
    for number in range(5):
        for active, _, _ in STEPS:
            with torch.inference_mode(number % 2 == 0):
                pipeline.adapters.set(active)
    assert held() == first


def test_a_switch_on_the_host_needs_the_files_no_more(tiny_root: Path, tmp_path: Path) -> None:
    wanted = resident(built("pixart", tiny_root), "merge")
    path = Path(shutil.copytree(tiny_root / "pixart", tmp_path / "pixart"))
    (tmp_path / ADAPTERS).symlink_to(tiny_root / ADAPTERS)
    pipeline = opened(path, "merge", "placement.transformer.rest=host")
    (file,) = (path / "transformer").glob("*.safetensors")
    file.unlink()
    for (active, _, _), step in zip(STEPS, wanted, strict=True):
        assert np.array_equal(picture(pipeline, "pixart", active), step.picture)


# Two ranks, whose host store is one copy


@pytest.fixture
def path(family: str, tiny_root: Path) -> Path:
    return built(family, tiny_root)


@pytest.mark.parametrize("mode", ["merge", "dynamic"])
@pytest.mark.parametrize("row", FEW_ROWS)
@pytest.mark.parametrize("family", ["flux", "pixart"])
@on_ranks(2)
def test_two_ranks_have_the_resident_bits(world: World, family: str, path: Path, row: str, mode: str) -> None:
    expect_resident_bits(opened(path, mode, *placements(row), world=joined(world)), path, mode)


@pytest.mark.parametrize("family", ["flux"])
@on_ranks(2)
def test_ranks_that_share_a_store_have_adapters_of_their_own(world: World, family: str, path: Path) -> None:
    """One rank merges, the other does not, and what they share stays as it is."""
    pipeline = opened(path, "merge", "placement.default.rest=host", world=joined(world))
    store: Any = offload.offloader_of(pipeline.stock.transformer).store
    base = {unit: store.view(unit).clone() for unit in store.packings}
    for number in (0, 1):
        step = 0 if number == world.rank else 3
        assert np.array_equal(picture(pipeline, family, STEPS[step][0]), resident(path, "merge")[step].picture)
    assert all(torch.equal(store.view(unit), base[unit]) for unit in store.packings)


@pytest.mark.parametrize("failing", ["transformer", "text_encoder"])
@pytest.mark.parametrize("rest", ["host", "disk", "device"])
@pytest.mark.parametrize("family", ["flux"])
@on_ranks(2)
def test_what_fails_on_one_rank_is_taken_back_there_and_touches_no_other(
    world: World, family: str, path: Path, rest: str, failing: str
) -> None:
    """Also in the other component, which was switched before."""
    placed = ["placement.default.rest=host", f"placement.{failing}.rest={rest}"]
    pipeline = opened(path, "merge", *placed, world=joined(world))
    one = picture(pipeline, family, {"one": 1.0})
    before = weights(pipeline)
    place = pipeline.adapters._places[failing]
    change = place.set
    broken = world.rank == 1

    def fail(edits: Edits) -> None:
        nonlocal broken
        change(edits)
        if broken:
            broken = False
            raise RuntimeError("no such luck")

    place.set = fail  # type: ignore[method-assign]
    if broken:
        with pytest.raises(RuntimeError, match="no such luck"):
            pipeline.adapters.set({"two": 1.5})
        expect_equal(weights(pipeline), before)
        assert np.array_equal(picture(pipeline, family, {"one": 1.0}), one)
    else:
        pipeline.adapters.set({"two": 1.5})
        expect_equal(weights(pipeline), resident(path, "merge")[1].weights)
    assert np.array_equal(picture(pipeline, family, {}), resident(path, "merge")[3].picture)
