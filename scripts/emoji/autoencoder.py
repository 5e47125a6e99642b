"""The autoencoder: 64 x 64 pixels to 4 x 16 x 16 latents and back, 0.7M parameters."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from .pictures import draw_icons, draw_scenes, render
from .schedule import train

LATENT_CHANNELS = 4
BATCH_SIZE = 24
LEARNING_RATE = 3e-3
KL_WEIGHT = 3e-4
GRADIENT_WEIGHT = 0.5


def build_autoencoder() -> AutoencoderKL:
    """A small AutoencoderKL, whose 1x1 quant convolutions are identities until they hold the latents' normalisation."""
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    for conv in (model.quant_conv, model.post_quant_conv):
        torch.nn.init.dirac_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
        conv.requires_grad_(False)
    return model


def train_autoencoder(icons: torch.Tensor, checkpoint: Path, *, minutes: float) -> None:
    """Trains on freshly drawn pictures for `minutes`, resuming from `checkpoint` if it exists."""
    model = build_autoencoder()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    generator = torch.Generator()  # not saved: a resumed run draws other pictures
    generator.seed()

    def step(_: float) -> torch.Tensor:
        num_styles, num_concepts = icons.shape[:2]
        concept = torch.randint(num_concepts, (BATCH_SIZE,), generator=generator)
        style = torch.randint(num_styles, (BATCH_SIZE,), generator=generator)
        pictures = render(draw_scenes(concept, style, generator), icons)
        loss = reconstruction_loss(model, pictures)
        loss.backward()
        return loss

    train(checkpoint, {"model": model}, [optimizer], step, minutes=minutes)


def reconstruction_loss(model: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """L1 + MSE + edges + KL. Edges (pixel differences) keep outlines sharp and flat areas flat."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(pictures).latent_dist
        decoded = model.decode(posterior.sample()).sample
    decoded = decoded.float()
    error = decoded - pictures
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + (error**2).mean() + GRADIENT_WEIGHT * edges + KL_WEIGHT * kl


def load_autoencoder(checkpoint: Path, icons: torch.Tensor) -> AutoencoderKL:
    """Loads the trained model and gives its latents zero mean and unit variance, channel by channel."""
    model = build_autoencoder()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    model.eval().requires_grad_(False)
    normalise_latents(model, render(draw_icons(1, torch.Generator().manual_seed(0)), icons))
    return model


@torch.no_grad()
def normalise_latents(model: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Writes the normalisation into the quant convolutions, where any pipeline applies it without knowing.

    `quant_conv` sees means and log variances, `post_quant_conv` undoes its affine map; a scaling factor alone, which is
    all that the pipeline knows, could not shift the mean.
    """
    latents = torch.cat([model.encode(batch).latent_dist.mean for batch in pictures.split(64)])
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    model.quant_conv.weight[:LATENT_CHANNELS] /= std[:, None, None, None]
    model.quant_conv.bias[:LATENT_CHANNELS] = -mean / std
    model.quant_conv.bias[LATENT_CHANNELS:] = -2 * std.log()
    model.post_quant_conv.weight *= std[:, None, None, None]
    model.post_quant_conv.bias.copy_(mean)


@torch.no_grad()
def reconstruction_psnr(model: AutoencoderKL, pictures: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in decibels over pictures in [-1, 1]."""
    decoded = torch.cat([model(batch).sample for batch in pictures.split(64)])
    error = F.mse_loss(decoded.clamp(-1, 1), pictures)
    return (10 * torch.log10(4 / error)).item()
