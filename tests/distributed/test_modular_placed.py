"""Modular pipelines on ranks and as real jobs: the bits of diffusers' own ModularPipeline."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from diffusers.utils import load_image
from PIL import Image

from runner.components.resolver import resolve
from runner.components.stages import components_of
from runner.config import Leave
from runner.request import Request
from tests import tiny
from tests.distributed.placed import opened
from tests.distributed.test_generate import generate, manifest
from tests.ranks import World, on_ranks

FAMILIES = [pytest.param(one, marks=pytest.mark.slow) if "wan" in one else one for one in tiny.MODULAR]
PLACEMENTS = {
    "sharded": ["placement.default.share=shard"],
    "sharded, host": ["placement.default.share=shard", "placement.default.rest=host"],
    "denoisers sharded, others from disk": ["placement.default.rest=disk"],
}


@functools.cache
def expected(family: str, path: Path, index: int) -> np.ndarray:
    described = tiny.MODULAR[family]
    return np.asarray(tiny.call_modular(tiny.load_modular(path), described, described.prompts[index], index)[0])


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", FAMILIES)
@on_ranks(2)
def test_each_placement_on_two_ranks_gives_the_stock_bits_in_both_scopes(
    world: World, family: str, path: Path, placement: str
) -> None:
    described = tiny.MODULAR[family]
    overrides = list(PLACEMENTS[placement])
    if "denoisers" in placement:
        overrides += [
            f"placement.{name}.{option}" for name in described.denoisers for option in ("share=shard", "rest=device")
        ]
    pipeline = opened(world, path, *overrides, "execution.leave_inference=weights")
    request = Request(described.prompts[world.rank], world.rank, described.call, output_type="np")
    for scope in (Leave.weights, Leave.component):
        pipeline.decisions = resolve(components_of(pipeline.stock), scope)
        assert np.array_equal(pipeline(request)[0][0], expected(family, path, world.rank)), (
            f"{scope}, rank {world.rank}"
        )
    pipeline.close()


@pytest.mark.slow
def test_a_picture_as_an_input_makes_another_task_of_the_same_directory(tiny_root: Path, tmp_path: Path) -> None:
    name = "modular_qwenimage"
    path, family = tiny.build(name, tiny_root), tiny.MODULAR[name]
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    call = {**family.call, "strength": 0.4}
    row = {"prompt": family.prompts[0], "seed": 3, "image": "cat.png", **call}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    job = f"job: {{prompts: {tmp_path / 'prompts.jsonl'}, format: npy, output: {tmp_path / 'output'}}}"
    (tmp_path / "recipe.yaml").write_text(f"model: {{path: {path}}}\n{job}\n")
    result = generate(1, str(tmp_path / "recipe.yaml"))
    assert result.returncode == 0, result.stderr
    stock, image = tiny.load_modular(path), load_image(str(tmp_path / "cat.png"))
    expected = tiny.call_modular(stock, family, family.prompts[0], 3, image=image, strength=0.4)[0]
    made = np.load(tmp_path / "output" / manifest(tmp_path / "output")[0]["file"])
    assert np.array_equal(made, expected)
    assert not np.array_equal(made, tiny.call_modular(stock, family, family.prompts[0], 3)[0])


@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_job_of_a_modular_directory_gives_the_stock_pictures(num_ranks: int, tiny_root: Path, tmp_path: Path) -> None:
    name = "modular_anima"
    path, family = tiny.build(name, tiny_root), tiny.MODULAR[name]
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": prompt, "seed": i, **family.call} for i, prompt in enumerate(family.prompts)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "output"
    placed = ["placement.transformer.share=shard", "placement.text_encoder.rest=disk"] if num_ranks > 1 else []
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{path: {path}}}\njob: {{prompts: {prompts}, format: npy, output: {output}}}\n")
    words = [str(recipe), *placed]
    result = generate(num_ranks, *words)
    assert result.returncode == 0, result.stderr
    stock = tiny.load_modular(path)
    lines = manifest(output)
    assert len(lines) == 3
    for seed, (line, prompt) in enumerate(zip(lines, family.prompts, strict=True)):
        assert np.array_equal(np.load(output / line["file"]), tiny.call_modular(stock, family, prompt, seed)[0])
    again = generate(num_ranks, *words)
    assert again.returncode == 0 and manifest(output) == lines, "everything is made"
