"""Adapters on software accelerators, chosen by prompts, in each placement: the pictures are the libraries' own."""

from pathlib import Path

import numpy as np
import pytest

from runner.job.prompts import read_prompts
from runner.job.results import Made
from tests.distributed.placed import opened, run_prompts
from tests.distributed.test_lora import CHOICES, INK, _prompts, _stock
from tests.ranks import World, on_ranks

PLACEMENTS: dict[str, list[str]] = {
    "resident": [],
    "host": ["placement.default.rest=host"],
    "disk": ["placement.default.rest=disk", "placement.transformer.resident_blocks=2"],
    "shard": ["placement.default.share=shard"],
    "shard, host": ["placement.transformer.share=shard", "placement.transformer.rest=host"],
}


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("mode", ["merge", "dynamic"])
@on_ranks(1, 2, soft=True)
def test_prompts_choose_adapters_in_each_placement(world: World, emoji: Path, mode: str, placement: str) -> None:
    settings = [f"lora=[{{path: {INK}, name: ink}}]", f"lora.mode={mode}", *PLACEMENTS[placement]]
    pipeline = opened(world, emoji, *settings)
    file = _prompts(world.tmp_path, f"prompts-{world.rank}.jsonl")
    results, pictures = run_prompts(world, pipeline, world.tmp_path / "out", read_prompts(file))
    assert all(isinstance(result, Made) for result in results) and len(results) == len(CHOICES)
    for seed in range(world.rank, len(CHOICES), world.size):
        lora = CHOICES[seed]
        expected = _stock(emoji, mode, {"ink": 1.0} if lora is None else lora, seed)
        assert np.array_equal(pictures["a cat", seed], expected), (seed, lora)
