"""The denoiser's training set: many scenes of every icon, encoded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from .files import write_atomically
from .pictures import Scenes, draw_scenes, every_icon, render

SCENES_PER_ICON = 48
USUAL_SHARE = 0.25  # scenes in the usual pose; the others have a spread anywhere between 0 and 1


def draw_spreads(num: int, generator: torch.Generator) -> torch.Tensor:
    """How far from the usual each of `num` poses may be: (num,) in [0, 1]."""
    return torch.rand(num, generator=generator).sub(USUAL_SHARE).div(1 - USUAL_SHARE).clamp(min=0)


@torch.no_grad()
def encode_scenes(autoencoder: AutoencoderKL, icons: torch.Tensor, path: Path, *, num_each: int, seed: int = 0) -> None:
    """Draws `num_each` scenes of every icon and writes them, by growing spread, with their latents to `path`."""
    generator = torch.Generator().manual_seed(seed)
    concept, style = every_icon(num_each, generator)
    # Icons are shuffled, so every range of spreads holds all of them.
    spread = draw_spreads(len(concept), generator).sort().values
    scenes = draw_scenes(concept, style, generator, spread)
    latents = torch.empty(len(scenes), 4, 16, 16, dtype=torch.bfloat16)
    for index in torch.arange(len(scenes)).split(96):
        with torch.autocast("cpu", torch.bfloat16):
            latents[index] = autoencoder.encode(render(scenes[index], icons)).latent_dist.mean.bfloat16()
    content = {"latents": latents, "spread": spread, "scenes": vars(scenes)}
    write_atomically(path, lambda temporary: torch.save(content, temporary))


@dataclass(frozen=True)
class EncodedScenes:
    """Scenes by growing spread: what they show, and their latents, (n, 4, 16, 16) in bfloat16."""

    latents: torch.Tensor
    spread: torch.Tensor
    scenes: Scenes

    def num_within(self, spread: float) -> int:
        """How many scenes, the first ones, have at most this spread."""
        return int(torch.searchsorted(self.spread, spread, right=True))


def load_scenes(path: Path) -> EncodedScenes:
    """Reads what `encode_scenes` wrote."""
    content = torch.load(path, weights_only=True)
    return EncodedScenes(content["latents"], content["spread"], Scenes(**content["scenes"]))
