"""Sharded pipelines give the bits of the stock one, and leave inference mode only where they must."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sharding
from runner.components import load
from runner.components.resolver import ExecutionMode
from runner.errors import UserError
from tests import tiny
from tests.distributed.placed import call, component_names, expect_stock_bits_in_both_scopes, opened, stock_bits
from tests.ranks import World, on_ranks

# placed: the overrides of each placed component.
PLACED = {
    "denoise": ["share=shard"],
    "encode": ["share=shard", "prefetch=0"],
    "decode": ["share=shard", "reshard_after_forward=false"],
    "all": ["share=shard", "rest=host", "prefetch=2"],
}


@pytest.fixture
def paths(tiny_root: Path) -> dict[str, Path]:
    return {family: tiny.build(family, tiny_root) for family in ("flux", "wan", "qwenimage")}


@pytest.mark.parametrize("placed", PLACED)
@pytest.mark.parametrize("family", tiny.FAMILIES)
@on_ranks(2)
def test_each_component_sharded_gives_the_stock_bits_in_both_scopes(
    world: World, family: str, path: Path, placed: str
) -> None:
    names = component_names(family, path, placed)
    if not names:
        return  # DiT has no text encoder
    overrides = [f"placement.{name}.{option}" for name in names for option in PLACED[placed]]
    pipeline = opened(world, path, *overrides, "execution.leave_inference=weights")
    expect_stock_bits_in_both_scopes(world, pipeline, family, path, set(names))


@pytest.mark.parametrize("family", tiny.FAMILIES)
@on_ranks(1)
def test_one_rank_shards_too(world: World, family: str, path: Path) -> None:
    pipeline = opened(world, path, "placement.default.share=shard", "execution.leave_inference=weights")
    expect_stock_bits_in_both_scopes(world, pipeline, family, path, {c.name for c in pipeline.components})


@pytest.mark.slow
@pytest.mark.parametrize("family", tiny.FAMILIES)
@on_ranks(4)
def test_replicated_groups_of_ranks_give_the_stock_bits(world: World, family: str, path: Path) -> None:
    mesh = ["mesh.shard=2", "mesh.replicate=2", "execution.leave_inference=weights"]
    pipeline = opened(world, path, "placement.default.share=shard", *mesh)
    assert {str(c.placement) for c in pipeline.components} == {"shard 2 x 2, device"}
    index = world.rank % 3
    assert torch.equal(call(pipeline, family, index), stock_bits(family, path, index))


@on_ranks(2)
def test_a_sharded_and_a_resident_pipeline_in_one_process_do_not_influence_each_other(
    world: World, paths: dict[str, Path]
) -> None:
    resident = opened(world, paths["flux"])
    sharded = opened(world, paths["flux"], "placement.default.share=shard")
    other = opened(world, paths["wan"], "placement.transformer.share=shard", "execution.leave_inference=weights")
    alone = opened(world, paths["wan"])
    pipelines = [(resident, "flux"), (sharded, "flux"), (other, "wan"), (alone, "wan")]
    for pipeline, family in (*pipelines, *reversed(pipelines)):
        assert torch.equal(call(pipeline, family, world.rank), stock_bits(family, paths[family], world.rank))
    modes = [[d.mode for d in pipeline.decisions.values()] for pipeline, _ in pipelines]
    assert set(modes[0]) == set(modes[2]) == set(modes[3]) == {ExecutionMode.INFERENCE}
    assert set(modes[1]) == {ExecutionMode.NORMAL}


@on_ranks(2)
def test_a_component_whose_stored_keys_are_renamed_loads_through_its_library(
    world: World, paths: dict[str, Path]
) -> None:
    path = paths["qwenimage"]
    pipeline = opened(world, path, "placement.default.share=shard")
    assert {loading.how for loading in pipeline.loadings.values()} == {"each rank its slices"}
    known = load.checkpoint_of
    load.checkpoint_of = lambda module, source: replace(known(module, source), rename=None)  # if nobody knew them
    try:
        pipeline = opened(world, path, "placement.default.share=shard")
    finally:
        load.checkpoint_of = known
    loaded = {name: loading.how for name, loading in pipeline.loadings.items()}
    assert loaded["transformer"] == loaded["vae"] == "each rank its slices"
    assert loaded["text_encoder"].startswith("whole, by its library, then sharded: ")
    assert torch.equal(call(pipeline, "qwenimage", 0), stock_bits("qwenimage", path, 0))


@on_ranks(2)
def test_weights_at_rest_are_sliced_and_only_there(world: World, paths: dict[str, Path]) -> None:
    path = paths["flux"]
    whole = {c.name: c.num_bytes for c in opened(world, path).components}
    pipeline = opened(world, path, "placement.default.share=shard", "placement.transformer.resident_blocks=1")
    at_rest = {c.name: c.num_bytes for c in pipeline.components}
    call(pipeline, "flux", world.rank)
    assert {c.name: c.num_bytes for c in pipeline.components} == at_rest, "a call leaves nothing gathered"
    assert at_rest["text_encoder_2"] <= 0.55 * whole["text_encoder_2"]
    assert 0.55 * whole["transformer"] < at_rest["transformer"] < 0.9 * whole["transformer"]


@on_ranks(2)
def test_the_weights_scope_is_refused_where_mixing_modes_is_not_safe(world: World, paths: dict[str, Path]) -> None:
    """On this torch build the check passes; another build's answer stands in for it."""

    def unsafe(mesh: object) -> None:
        raise sharding.MixedModesUnsafe("torch 0.0: call 2 in the order IN fails")

    sharding.verify_mixed_modes, check = unsafe, sharding.verify_mixed_modes
    try:
        opened(world, paths["flux"], "placement.transformer.share=shard")
        with pytest.raises(UserError, match=r"weights is not safe here: torch 0\.0.*use .*component"):
            opened(world, paths["flux"], "placement.transformer.share=shard", "execution.leave_inference=weights")
    finally:
        sharding.verify_mixed_modes = check
