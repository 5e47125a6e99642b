"""Changed components give the bits of the stock pipeline that is changed in the same way, wherever they are placed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from runner.request import Request
from tests import tiny
from tests.distributed.placed import opened
from tests.ranks import World, on_ranks

FAMILY = tiny.FAMILIES["wan"]
PLACED = {
    "resident": [],
    "sharded": ["placement.default.share=shard"],
    "host": ["placement.default.rest=host"],
    "disk": ["placement.default.rest=disk"],
}
TILES = {"tile_sample_min_height": 16, "tile_sample_min_width": 16}
STRIDES = {"tile_sample_stride_height": 8, "tile_sample_stride_width": 8}


def _shifted(stock: Any) -> None:
    stock.scheduler = type(stock.scheduler).from_config(stock.scheduler.config, flow_shift=7.0)


def _exchanged(stock: Any) -> None:
    stock.scheduler = DPMSolverMultistepScheduler.from_config(stock.scheduler.config, use_flow_sigmas=True)


def _tiled(stock: Any) -> None:
    stock.vae.enable_tiling(**TILES, **STRIDES)


def _attention(stock: Any) -> None:
    before = _AttentionBackendRegistry.get_active_backend()[0]
    stock.transformer.set_attention_backend("_native_math")
    _AttentionBackendRegistry.set_active_backend(before)


# The words, and what changes the stock pipeline so.
CHANGES: dict[str, tuple[list[str], Callable[[Any], None]]] = {
    "a setting of the scheduler": (["components.scheduler.flow_shift=7.0"], _shifted),
    "another scheduler": (
        ["components.scheduler.class=DPMSolverMultistepScheduler", "components.scheduler.use_flow_sigmas=true"],
        _exchanged,
    ),
    "tiles": (
        ["components.vae.tiling={" + ", ".join(f"{key}: {value}" for key, value in (TILES | STRIDES).items()) + "}"],
        _tiled,
    ),
    "attention": (["components.transformer.attention=_native_math"], _attention),
}


def stock_of(path: Path, change: Callable[[Any], None], **options: Any) -> torch.Tensor:
    stock: Any = DiffusionPipeline.from_pretrained(path, **options)
    for component in stock.components.values():
        if isinstance(component, torch.nn.Module):
            for tensor in (*component.parameters(), *component.buffers()):
                tensor.data = tensor.data.clone()
    change(stock)
    return torch.as_tensor(tiny.call_stock(stock, FAMILY, FAMILY.prompts[0], 5)[0])


@pytest.mark.parametrize("placed", PLACED)
@pytest.mark.parametrize("change", CHANGES)
@on_ranks(1)
def test_a_change_gives_the_bits_of_stock_changed_so(world: World, tiny_root: Path, change: str, placed: str) -> None:
    path = tiny.build("wan", tiny_root)
    words, apply = CHANGES[change]
    pipeline = opened(world, path, *words, *PLACED[placed])
    made = torch.as_tensor(pipeline(Request(FAMILY.prompts[0], 5, FAMILY.call, output_type="np"))[0][0])
    assert torch.equal(made, stock_of(path, apply))
    if change != "attention":  # whose last bit is the same on most machines
        assert not torch.equal(made, stock_of(path, lambda _: None))
    else:
        chosen = {m._attention_backend for m in _processors(pipeline.stock.transformer)}
        assert chosen == {"_native_math"}
        assert _AttentionBackendRegistry.get_active_backend()[0] == "native", "of nothing else in the process"


def _processors(module: torch.nn.Module) -> list[Any]:
    found = [getattr(inner, "processor", None) for inner in module.modules()]
    return [processor for processor in found if hasattr(processor, "_attention_backend")]


@pytest.mark.parametrize("placed", PLACED)
@on_ranks(1)
def test_a_component_of_another_dtype_gives_the_bits_of_stock_with_it(
    world: World, tiny_root: Path, placed: str
) -> None:
    path = tiny.build("wan", tiny_root)
    words = ["model.dtype=bfloat16", "components.vae.dtype=float32"]
    pipeline = opened(world, path, *words, *PLACED[placed])
    made = torch.as_tensor(pipeline(Request(FAMILY.prompts[0], 5, FAMILY.call, output_type="np"))[0][0])
    dtype = {"default": torch.bfloat16, "vae": torch.float32}
    assert torch.equal(made, stock_of(path, lambda _: None, dtype=dtype))
    assert {p.dtype for p in pipeline.stock.vae.parameters()} == {torch.float32}
