"""Modular pipelines on ranks and as real jobs: the bits of diffusers' own ModularPipeline."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from runner.components.component import components_of
from runner.components.resolver import resolve
from runner.config import Leave
from runner.request import Request
from tests import tiny
from tests.distributed.placed import opened
from tests.distributed.test_generate import generate, manifest
from tests.ranks import World, on_ranks

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
@pytest.mark.parametrize("family", tiny.MODULAR)
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


@pytest.mark.parametrize("num_ranks", [1, 2])
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
