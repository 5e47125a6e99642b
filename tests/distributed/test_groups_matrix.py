"""Twelve families in groups of one, two and five, in each placement and scope, on one rank and two: the stock bits.

Each pipeline is opened once; scopes and sizes of groups follow one another on it.
"""

from pathlib import Path

import pytest
import torch

import offload
from tests import tiny
from tests.distributed.placed import call, expect_stock_bits_together, opened, stock_bits
from tests.ranks import World, on_ranks

FAMILIES = (*tiny.FAMILIES, "modular_anima", "modular_wan22")
ROWS = {
    "disk": ["rest=disk"],
    "host": ["rest=host", "window=1"],
    "shard": ["share=shard"],
    "shard, host": ["share=shard", "rest=host"],
}
FAST = {("flux", "disk"), ("wan22", "host"), ("dit", "shard"), ("qwenimage", "shard, host"), ("pixart", "disk")}
CASES = [
    pytest.param(family, row, marks=[] if (family, row) in FAST else pytest.mark.slow)
    for family in FAMILIES
    for row in ROWS
]


@pytest.fixture
def path(tiny_root: Path, family: str) -> Path:
    return tiny.build(family, tiny_root)


@pytest.mark.parametrize(("family", "row"), CASES)
@on_ranks(1, 2)
def test_each_request_of_a_group_gives_the_stock_bits_in_both_scopes(
    world: World, family: str, path: Path, row: str
) -> None:
    """Alone as a group measures it, and in groups of two and of five: an odd rest. On two ranks that share weights,
    both make a group of their own."""
    pipeline = opened(world, path, *(f"placement.default.{option}" for option in ROWS[row]))
    expect_stock_bits_together(pipeline, family, path, world.rank, (1, 2, 5))
    for component in pipeline.components:
        if (offloader := offload.offloader_of(component.module)) is not None:
            assert not offloader.is_up and offloader.bytes_on_device == offloader.bytes_at_rest
    index = 1 + world.rank
    assert torch.equal(call(pipeline, family, index), stock_bits(family, path, index)), "then one by one again"
