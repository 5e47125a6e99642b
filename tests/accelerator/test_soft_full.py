"""A device that is full for one request: where no rank shares its weights, that one fails, and the others are made."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from runner.job.prompts import Prompt
from runner.job.results import Failed, Made
from tests.distributed.placed import call, opened, request_of, run_prompts, stock_bits
from tests.ranks import World, on_ranks

PLACEMENTS = {"resident": [], "host": ["placement.transformer.rest=host"]}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", ["flux"])
@on_ranks(1, soft=True)
def test_a_picture_that_is_too_large_fails_and_leaves_the_device_as_it_was(
    world: World, family: str, path: Path, placement: str
) -> None:
    pipeline = opened(world, path, *PLACEMENTS[placement])
    call(pipeline, family, 0)
    gc.collect()
    before = torch.accelerator.memory_allocated()
    torch.accelerator.reset_peak_memory_stats()
    call(pipeline, family, 0)
    enough = torch.accelerator.max_memory_allocated()
    _, capacity = torch.accelerator.get_memory_info(world.device)
    requests = [request_of(family, seed, **({"height": 512, "width": 512} if seed == 1 else {})) for seed in range(3)]
    prompts = [Prompt(request.prompt, request.seed, dict(request.call)) for request in requests]
    torch.ops.soft.set_capacity(world.rank, enough + 2**20)
    try:
        settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts)
    finally:
        torch.ops.soft.set_capacity(world.rank, capacity)
    assert [type(result) for result in settled] == [Made, Failed, Made]
    assert isinstance(settled[1], Failed)
    assert settled[1].failure.error == "OutOfMemoryError" and "soft:0 is out of memory" in settled[1].failure.message
    for (_, seed), picture in pictures.items():
        assert np.array_equal(picture, stock_bits(family, path, seed).numpy())
    gc.collect()
    assert torch.accelerator.memory_allocated() == before, "the traceback of the one that failed held nothing back"
    pipeline.close()
