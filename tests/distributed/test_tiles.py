"""Tiled decoding shared out over a team: the bits of diffusers' own tiled decoding, and a part of its work a rank."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.pipeline.pipeline import Pipeline
from tests import tiny
from tests.distributed.placed import call_together, opened, request_of
from tests.ranks import World, on_ranks

# Tiles of a few latents, so that the tiny pictures have several.
LARGER = {"height": 32, "width": 32}
OF_ITS_OWN = {
    "tile_sample_min_height": 16,
    "tile_sample_min_width": 16,
    "tile_sample_stride_height": 8,
    "tile_sample_stride_width": 8,
}
TILES: dict[str, dict[str, Any]] = {
    "flux": {"tile_sample_min_size": 16, "tile_latent_min_size": 8, "tile_overlap_factor": 0.25},
    "sana": {**OF_ITS_OWN, "tile_latent_min_height": 2, "tile_latent_min_width": 2},
    "hunyuanvideo": OF_ITS_OWN,
    "wan": OF_ITS_OWN,
}
SHARED = "placement.vae.share=shard"


@pytest.fixture
def paths(tiny_root: Path) -> dict[str, Path]:
    return {family: tiny.build(family, tiny_root) for family in TILES}


def tile(vae: Any, family: str) -> None:
    vae.enable_tiling()
    vars(vae).update(TILES[family])


def stock_tiled(family: str, path: Path, index: int) -> torch.Tensor:
    stock = tiny.load_stock(path)
    tile(stock.vae, family)
    described = tiny.FAMILIES[family]
    described = replace(described, call={**described.call, **LARGER})
    prompt = described.prompts[index % len(described.prompts)]
    return torch.as_tensor(tiny.call_stock(stock, described, prompt, index, output_type="np")[0])


def decoder_calls(pipeline: Pipeline) -> list[int]:
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    pipeline.stock.vae.decoder.register_forward_pre_hook(count)
    return calls


def made(pipeline: Pipeline, family: str, index: int, world: World) -> torch.Tensor:
    return torch.as_tensor(pipeline(request_of(family, index, **LARGER))[0][0])


@pytest.mark.parametrize(
    "placement", [[], [SHARED], ["placement.vae.rest=disk"]], ids=["whole", "sharded", "from disk"]
)
@pytest.mark.parametrize("family", ["flux", "sana", "hunyuanvideo"])
@on_ranks(2)
def test_tiles_are_shared_out_and_have_the_stock_bits(
    world: World, paths: dict[str, Path], family: str, placement: list[str]
) -> None:
    pipeline = opened(world, paths[family], "mesh.guidance=2", *placement)
    tile(pipeline.stock.vae, family)
    calls, expected = decoder_calls(pipeline), stock_tiled(family, paths[family], 1)
    assert torch.equal(made(pipeline, family, 1, world), expected)
    number = pipeline.world.gather(pipeline.tiles.decoded["vae"])  # type: ignore[union-attr]
    assert sum(number) > 2 and max(number) - min(number) <= 1
    if placement == [SHARED]:
        assert pipeline.world.gather(calls[0]) == [max(number)] * 2, "as many gathers on both"
    else:
        assert pipeline.world.gather(calls[0]) == number
    pictures = call_together(pipeline, [request_of(family, 1, **LARGER)] * 2)
    assert all(torch.equal(picture, expected) for picture in pictures)
    pipeline.close()
    assert "tiled_decode" not in vars(pipeline.stock.vae)


@on_ranks(2)
def test_tiles_whose_decoder_keeps_a_cache_are_decoded_by_every_rank(world: World, paths: dict[str, Path]) -> None:
    pipeline = opened(world, paths["wan"], "mesh.guidance=2")
    tile(pipeline.stock.vae, "wan")
    assert torch.equal(made(pipeline, "wan", 0, world), stock_tiled("wan", paths["wan"], 0))
    assert pipeline.tiles is not None and pipeline.tiles.decoded == {}
    assert pipeline.tiles.reasons == {"vae": "its decoder keeps a cache from call to call"}


@on_ranks(2)
def test_a_decoder_that_draws_random_numbers_is_found_out(world: World, paths: dict[str, Path]) -> None:
    pipeline, stock = opened(world, paths["flux"], "mesh.guidance=2"), tiny.load_stock(paths["flux"])
    for vae in (pipeline.stock.vae, stock.vae):
        tile(vae, "flux")
        vae.decoder.register_forward_hook(lambda module, args, output: output + torch.rand(1))
    latents = torch.randn(
        1, pipeline.stock.vae.config.latent_channels, 16, 16, generator=torch.Generator().manual_seed(3)
    )
    decoded = []
    for vae in (stock.vae, pipeline.stock.vae):
        torch.manual_seed(5)
        with torch.inference_mode():
            decoded.append(vae.decode(latents, return_dict=False)[0])
    assert torch.equal(*decoded)
    assert pipeline.tiles is not None and "random" in str(pipeline.tiles.reasons["vae"])


@on_ranks(2)
def test_a_tile_that_fails_on_one_rank_ends_the_request_on_all(world: World, paths: dict[str, Path]) -> None:
    pipeline = opened(world, paths["flux"], "mesh.guidance=2")
    tile(pipeline.stock.vae, "flux")
    calls = decoder_calls(pipeline)

    def fail(*_: Any) -> None:
        if world.rank == 1 and calls[0] == 2:
            raise ValueError("no room for this tile")

    handle = pipeline.stock.vae.decoder.register_forward_pre_hook(fail)
    with pytest.raises((ValueError, RuntimeError), match="no room for this tile"):
        made(pipeline, "flux", 1, world)
    handle.remove()
    assert torch.equal(made(pipeline, "flux", 1, world), stock_tiled("flux", paths["flux"], 1))
