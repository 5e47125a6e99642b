"""Sharded components on software accelerators: the bits of the CPU on 1 and 2 ranks, and nothing unordered."""

from pathlib import Path

import pytest
import torch

from tests.distributed.placed import call, expect_stock_bits_in_both_scopes, opened, stock_bits
from tests.ranks import World, on_ranks

# Every component is sharded so.
ROWS = {
    "device": [],
    "no prefetch": ["prefetch=0"],
    "prefetch of two": ["prefetch=2"],
    "kept gathered": ["reshard_after_forward=false"],
    "host": ["rest=host"],
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("family", ["flux", "wan"])
@on_ranks(1, 2, soft=True)
def test_sharded_components_give_the_cpus_bits_in_both_scopes(world: World, family: str, path: Path, row: str) -> None:
    overrides = [f"placement.default.{option}" for option in ("share=shard", *ROWS[row])]
    pipeline = opened(world, path, *overrides, "execution.leave_inference=weights")
    expect_stock_bits_in_both_scopes(world, pipeline, family, path, {c.name for c in pipeline.components})
    on = torch.device("cpu") if row == "host" else world.device
    for component in pipeline.components:
        assert {p.to_local().device for p in component.module.parameters() if hasattr(p, "to_local")} == {on}


@pytest.mark.parametrize("family", ["flux"])
@on_ranks(2, soft=True)
def test_sharded_offloaded_and_resident_components_work_together(world: World, family: str, path: Path) -> None:
    placements = ["placement.text_encoder_2.rest=disk", "placement.transformer.share=shard", "placement.vae.rest=host"]
    pipeline = opened(world, path, *placements, "placement.transformer.resident_blocks=1")
    for index in (world.rank, 2, 2):
        assert torch.equal(call(pipeline, family, index), stock_bits(family, path, index))
