"""Layouts of worlds that do not exist: the fake backend, meta weights, seconds."""

import time
from collections.abc import Callable

import accelerate
import diffusers
import pytest
import torch
from torch import nn

from sharding import Layout, build_mesh, fake_world, layout, set_dtype, shard


def test_a_mesh_that_does_not_fit_proposes_one_that_does() -> None:
    with fake_world(4):
        for shard_size, replicate, fit in (
            (3, 1, "shard=4 and replicate=1"),
            (2, 1, "shard=2 and replicate=2"),
            (None, 3, "shard=1 and replicate=4"),
            (0, 2, "shard=2 and replicate=2"),
        ):
            with pytest.raises(ValueError, match=fit):
                build_mesh("cpu", shard=shard_size, replicate=replicate)
        assert build_mesh("cpu", replicate=2).mesh_dim_names == ("replicate", "shard")
        assert build_mesh("cpu", shard=4).mesh.tolist() == [0, 1, 2, 3]
        assert build_mesh("cpu", shard=2, replicate=2).mesh.tolist() == [[0, 1], [2, 3]]


def lay_out(build: Callable[[], nn.Module], world_size: int, replicate: int = 1, **options: int) -> tuple[Layout, int]:
    """The layout on rank 0, and the bytes of the whole model."""
    with accelerate.init_empty_weights(include_buffers=False):
        model = build()
    set_dtype(model, lambda _: torch.bfloat16)
    whole = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    with fake_world(world_size):
        return layout(shard(model, build_mesh("cpu", replicate=replicate), **options)), whole


@pytest.mark.parametrize("world_size", [64, 512])
@pytest.mark.parametrize("build", [diffusers.FluxTransformer2DModel, diffusers.WanTransformer3DModel])
def test_large_models_are_laid_out_over_many_ranks_in_seconds(build: Callable[[], nn.Module], world_size: int) -> None:
    start = time.perf_counter()
    found, whole = lay_out(build, world_size)
    print(f"{build.__name__} over {world_size}: {found} of {whole}, {time.perf_counter() - start:.1f} s")

    assert whole > 20e9
    assert whole / world_size <= found.at_rest <= whole / world_size * 1.1 + 2**20
    assert found.outside_blocks + 50 * found.largest_block > whole
    assert time.perf_counter() - start < 30


def test_replicas_hold_as_much_as_one_group_of_their_size() -> None:
    alone, _ = lay_out(diffusers.FluxTransformer2DModel, 8)
    replicated, _ = lay_out(diffusers.FluxTransformer2DModel, 64, replicate=8)
    assert replicated == alone


def test_resident_blocks_are_counted_whole() -> None:
    plain, _ = lay_out(diffusers.WanTransformer3DModel, 64)
    resident, _ = lay_out(diffusers.WanTransformer3DModel, 64, resident_blocks=10)
    added = resident.at_rest - plain.at_rest
    assert added == pytest.approx(10 * plain.largest_block * 63 / 64, rel=0.01)
