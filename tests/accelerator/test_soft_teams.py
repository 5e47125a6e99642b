"""Ranks that make one request together on software accelerators: the bits of the CPU, and nothing unordered."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.distributed.placed import call, call_together, opened, request_of, stock_bits
from tests.distributed.teams import FAMILY
from tests.ranks import World, on_ranks

PLACED = {
    "resident": [],
    "host": ["rest=host"],
    "sharded": ["share=shard"],
    "sharded on disk": ["share=shard", "rest=disk"],
}


def options_of(placed: str) -> list[str]:
    return [f"placement.transformer.{option}" for option in PLACED[placed]]


@pytest.mark.parametrize("placed", PLACED)
@pytest.mark.parametrize("family", [FAMILY])
@on_ranks(2, soft=True)
def test_ranks_that_share_out_the_calls_of_a_step(world: World, family: str, path: Path, placed: str) -> None:
    """Requests one by one, and in a group; each call's result goes from one device to the other."""
    pipeline = opened(world, path, *options_of(placed), "mesh.guidance=2")
    for index in (0, 1):
        assert torch.equal(call(pipeline, family, index), stock_bits(family, path, index))
    together = call_together(pipeline, [request_of(family, index) for index in (1, 2)])
    for index, picture in zip((1, 2), together, strict=True):
        assert torch.equal(picture, stock_bits(family, path, index))
    pipeline.close()


@pytest.mark.parametrize("placed", PLACED)
@pytest.mark.parametrize("family", ["flux", "qwenimage", "wan"])
@on_ranks(2, soft=True)
def test_ranks_that_share_out_the_tokens_of_a_call(world: World, family: str, path: Path, placed: str) -> None:
    """Against the same ranks on the CPU, since sums may have another order than the stock pipeline's. Prompts of
    several lengths: some divide by the ranks, others do not."""
    on_cpu = opened(replace(world, device=torch.device("cpu")), path, "mesh.context=2")
    expected = [call(on_cpu, family, index) for index in (0, 1)]
    on_cpu.close()
    pipeline = opened(world, path, *options_of(placed), "mesh.context=2")
    for index in (0, 1, 0):
        assert torch.equal(call(pipeline, family, index), expected[index])
    for picture, one in zip(call_together(pipeline, [request_of(family, i) for i in (0, 1)]), expected, strict=True):
        assert torch.equal(picture, one)
    pipeline.close()
