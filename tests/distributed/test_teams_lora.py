"""Requests with an adapter, whose calls a team shares out: the picture of the libraries' own adapter."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.distributed.counted import alike_in_each_copy
from tests.distributed.placed import joined, new_stock_of, opened, request_of, stock_bits
from tests.distributed.teams import FAMILY, SHARDED
from tests.lora.lora_files import Stock, save_adapter
from tests.ranks import World, on_ranks


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build(FAMILY, tiny_root)


@pytest.mark.parametrize(
    "placement", [[], [SHARDED], ["placement.transformer.rest=disk"]], ids=["whole", "sharded", "from disk"]
)
@pytest.mark.parametrize("mode", [pytest.param("merge", marks=pytest.mark.slow), "dynamic"])
@on_ranks(2)
def test_a_request_with_an_adapter(world: World, path: Path, mode: str, placement: list[str]) -> None:
    """Chosen anew for each request: full, weaker, none, and full again."""
    file = world.tmp_path / "ink"
    if world.rank == 0:
        save_adapter(tiny.load_stock(path), file, seed=3)
    joined(world).gather(None)
    adapters = [f"lora.mode={mode}", f"lora.adapters=[{{path: {file}, name: ink}}]"]
    pipeline = opened(world, path, "mesh.guidance=2", *adapters, *placement)
    scales = (0.8, 0.3, None, 0.8)
    with alike_in_each_copy(pipeline) if SHARDED in placement else nullcontext():
        pictures = [
            torch.as_tensor(pipeline(replace(request_of(FAMILY, seed), lora={"ink": scale} if scale else {}))[0][0])
            for seed, scale in enumerate(scales)
        ]
    for seed, (made, scale) in enumerate(zip(pictures, scales, strict=True)):
        wanted = stock_bits(FAMILY, path, seed) if scale is None else _stock(path, file, mode, seed, scale)
        assert torch.equal(made, wanted), (seed, scale)
        assert scale is None or not torch.equal(made, stock_bits(FAMILY, path, seed))
    assert pipeline.rounds is not None
    figures = pipeline.rounds.figures.components["transformer"]
    assert set(figures.widths) == {2} and figures.shared_out and not figures.serial


def _stock(path: Path, file: Path, mode: str, seed: int, scale: float) -> torch.Tensor:
    """By diffusers' own loader, beside the layers or fused."""
    stock = Stock(new_stock_of(path), {"ink": file})
    stock.set({"ink": scale})
    if mode == "merge":
        stock.fuse()
    family = tiny.FAMILIES[FAMILY]
    return torch.as_tensor(tiny.call_stock(stock.pipeline, family, family.prompts[seed % 3], seed)[0])
