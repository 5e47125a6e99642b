"""PixArt-Sigma from a picture: what follows from the stock pipeline, bit for bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline
from PIL import Image

from pipelines import PixArtSigmaImg2ImgPipeline
from pipelines.pixart import _starting_at

EMOJI = Path(__file__).parents[2] / "models" / "emoji-dit"
STEPS = 6
CALL: dict[str, Any] = {
    "num_inference_steps": STEPS,
    "guidance_scale": 3.0,
    "height": 64,
    "width": 64,
    "clean_caption": False,
    "output_type": "np",
}
WHITE, BLACK = Image.new("L", (64, 64), 255), Image.new("L", (64, 64), 0)


@pytest.fixture(scope="module")
def stock() -> Iterator[PixArtSigmaPipeline]:
    pipeline = PixArtSigmaPipeline.from_pretrained(EMOJI, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        yield pipeline


def made(stock: PixArtSigmaPipeline, cls: Any, *, seed: int = 0, **call: Any) -> np.ndarray:
    """By another class over the same parts, but a scheduler of its own."""
    scheduler = DPMSolverMultistepScheduler.from_config(stock.scheduler.config)
    pipeline = cls(**stock.components | {"scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    if cls is PixArtSigmaPipeline:
        call["use_resolution_binning"] = False
    return pipeline(generator=torch.Generator().manual_seed(seed), **CALL | call).images[0]


@pytest.fixture(scope="module")
def fox(stock: PixArtSigmaPipeline) -> Image.Image:
    return made(stock, PixArtSigmaPipeline, prompt="a fox", output_type="pil")


def test_at_full_strength_nothing_of_the_picture_is_left(stock: PixArtSigmaPipeline, fox: Image.Image) -> None:
    wanted = made(stock, PixArtSigmaPipeline, prompt="a panda", seed=5)
    got = made(stock, PixArtSigmaImg2ImgPipeline, prompt="a panda", image=fox, strength=1.0, seed=5)
    assert np.array_equal(got, wanted)


def test_less_strength_keeps_more_of_the_picture(stock: PixArtSigmaPipeline, fox: Image.Image) -> None:
    picture = np.asarray(fox) / 255
    distances = [
        np.abs(made(stock, PixArtSigmaImg2ImgPipeline, prompt="a panda", image=fox, strength=strength) - picture).mean()
        for strength in (0.2, 0.5, 0.8, 1.0)
    ]
    assert distances == sorted(distances) and distances[0] < 0.5 * distances[-1]


@pytest.mark.parametrize("order", [1, 2])
def test_a_schedule_that_begins_later_goes_on_where_stock_is(stock: PixArtSigmaPipeline, order: int) -> None:
    """From stock's latents after two steps to stock's picture: a first-order solver remembers nothing of what was
    before. A second-order one does, so its first step there is another one, and its picture is near."""
    config = dict(stock.scheduler.config) | {"solver_order": order}

    def run(**call: Any) -> np.ndarray:
        scheduler = DPMSolverMultistepScheduler.from_config(config)
        pipeline = PixArtSigmaPipeline(**stock.components | {"scheduler": scheduler})
        pipeline.set_progress_bar_config(disable=True)
        start = call.pop("start", 0)
        with _starting_at(scheduler, start):
            return pipeline("a castle", use_resolution_binning=False, **CALL | call).images[0]

    latents: list[torch.Tensor] = []
    generator = torch.Generator().manual_seed(3)
    wanted = run(generator=generator, callback=lambda step, t, latent: latents.append(latent.clone()))
    got = run(latents=latents[1], start=2)
    assert np.array_equal(got, wanted) if order == 1 else np.abs(got - wanted).mean() < 0.03


def test_a_white_mask_keeps_nothing(stock: PixArtSigmaPipeline, fox: Image.Image) -> None:
    for strength in (0.5, 1.0):
        wanted = made(stock, PixArtSigmaImg2ImgPipeline, prompt="a panda", image=fox, strength=strength)
        got = made(stock, PixArtSigmaImg2ImgPipeline, prompt="a panda", image=fox, mask_image=WHITE, strength=strength)
        assert np.array_equal(got, wanted)


def test_a_black_mask_keeps_all_that_the_vae_keeps(stock: PixArtSigmaPipeline, fox: Image.Image) -> None:
    pixels = torch.from_numpy(np.asarray(fox) / 127.5 - 1).float().permute(2, 0, 1)[None]
    decoded = stock.vae.decode(stock.vae.encode(pixels).latent_dist.mode()).sample
    wanted = (decoded / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    got = made(stock, PixArtSigmaImg2ImgPipeline, prompt="a panda", image=fox, mask_image=BLACK, strength=1.0)
    np.testing.assert_allclose(got, wanted, atol=1e-4)  # scaled, and scaled back


def test_half_a_mask_keeps_that_half(stock: PixArtSigmaPipeline, fox: Image.Image) -> None:
    mask = BLACK.copy()
    mask.paste(255, (0, 0, 64, 32))
    got = made(stock, PixArtSigmaImg2ImgPipeline, prompt="a panda", image=fox, mask_image=mask, strength=1.0)
    change = np.abs(got - np.asarray(fox) / 255).mean(axis=(1, 2))
    assert change[48:].mean() < 0.06 < 0.15 < change[:24].mean()


@pytest.mark.parametrize("strength", [0.0, 1.5, 0.01])
def test_a_strength_that_makes_no_step_is_refused(
    stock: PixArtSigmaPipeline, fox: Image.Image, strength: float
) -> None:
    with pytest.raises(ValueError, match="makes none of the 6 steps"):
        made(stock, PixArtSigmaImg2ImgPipeline, prompt="a panda", image=fox, strength=strength)
