"""Other pipelines over a directory's components, with components from elsewhere, give the stock pipelines' bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxImg2ImgPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)

from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from tests import tiny
from tests.distributed.placed import opened
from tests.ranks import World, on_ranks
from tests.tiny.weights import randomise

FAMILY = tiny.FAMILIES["flux"]
PICTURE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(7))
PLACED = {
    "resident": [],
    "sharded": ["share=shard"],
    "sharded on the host": ["share=shard", "rest=host"],
    "host": ["rest=host"],
    "disk": ["rest=disk"],
}


@pytest.fixture
def flux(tiny_root: Path) -> Path:
    return tiny.build("flux", tiny_root)


@pytest.fixture
def controlnet(flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("net")
    settings = {"num_layers": 2, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 4}
    transformer = FluxTransformer2DModel.from_pretrained(flux / "transformer")
    made = FluxControlNetModel.from_transformer(transformer, load_weights_from_transformer=False, **settings)
    randomise(made, seed=11).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that halves each side, as the model's own does."""
    folder = tmp_path_factory.mktemp("vae")
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    )
    randomise(vae, seed=12).save_pretrained(folder)
    return folder


def made(pipeline: Pipeline, **more: Any) -> torch.Tensor:
    return torch.as_tensor(pipeline(Request("a red fox", 3, {**FAMILY.call, **more}, output_type="np"))[0][0])


def stock_made(stock: Any, **more: Any) -> torch.Tensor:
    for component in stock.components.values():
        if isinstance(component, torch.nn.Module):
            for tensor in (*component.parameters(), *component.buffers()):
                tensor.data = tensor.data.clone()
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        return torch.as_tensor(
            stock(prompt=["a red fox"], **FAMILY.call, **more, generator=generator, output_type="np")[0][0]
        )


@pytest.mark.parametrize("placed", ["resident", "disk"])
@on_ranks(1)
def test_another_class_gives_the_bits_of_from_pipe(world: World, flux: Path, placed: str) -> None:
    options = [f"placement.default.{option}" for option in PLACED[placed]]
    pipeline = opened(world, flux, "model.pipeline=FluxImg2ImgPipeline", *options)
    stock: Any = FluxImg2ImgPipeline.from_pipe(FluxPipeline.from_pretrained(flux))
    assert torch.equal(made(pipeline, image=PICTURE, strength=0.7), stock_made(stock, image=PICTURE, strength=0.7))


@pytest.mark.parametrize("placed", PLACED)
@on_ranks(2)
def test_a_controlnet_of_its_own_folder_gives_the_stock_bits_wherever_it_is_placed(
    world: World, flux: Path, controlnet: Path, placed: str
) -> None:
    options = [f"placement.controlnet.{option}" for option in PLACED[placed]]
    words = ["model.pipeline=FluxControlNetPipeline", f"components.controlnet.path={controlnet}"]
    pipeline = opened(world, flux, *words, *options)
    stock: Any = FluxControlNetPipeline.from_pretrained(
        flux, controlnet=FluxControlNetModel.from_pretrained(controlnet)
    )
    expected = stock_made(stock, control_image=PICTURE, controlnet_conditioning_scale=0.8)
    assert torch.equal(made(pipeline, control_image=PICTURE, controlnet_conditioning_scale=0.8), expected)
    assert not torch.equal(expected, stock_made(stock, control_image=PICTURE, controlnet_conditioning_scale=0.1))


@pytest.mark.parametrize("placed", ["resident", "host", "disk", "sharded"])
@on_ranks(1)
def test_another_vae_gives_the_bits_of_stock_with_it(world: World, flux: Path, tiny_vae: Path, placed: str) -> None:
    options = [f"placement.vae.{option}" for option in PLACED[placed]]
    pipeline = opened(world, flux, f"components.vae.path={tiny_vae}", *options)
    stock: Any = FluxPipeline.from_pretrained(flux, vae=AutoencoderTiny.from_pretrained(tiny_vae))
    assert torch.equal(made(pipeline), stock_made(stock))
