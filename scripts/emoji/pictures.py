"""Training pictures: an icon, placed at random on a flat background.

The pose (shift, scale, turn, mirror) is what a seed decides later: a caption names it only sometimes, and then roughly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .concepts import BACKGROUNDS, CONCEPTS, STYLES, held_out_pairs

SIZE = 64
MIN_SCALE, USUAL_SCALE, MAX_SCALE = 0.75, 0.9, 1.0  # the share of the picture's width that the icon's own frame takes
MAX_TURN = math.radians(8)
WHITE_SHARE = 0.4


@dataclass(frozen=True)
class Scenes:
    """What a batch of pictures shows; every field has one entry a picture.

    `scale` is the icon's share of the width, `turn` its angle in radians, `shift` its centre's (x, y) offset as a
    share of the half width, positive to the right and down.
    """

    concept: torch.Tensor  # (n,) int64, index into CONCEPTS
    style: torch.Tensor  # (n,) int64, index into STYLES
    background: torch.Tensor  # (n,) int64, index into BACKGROUNDS
    scale: torch.Tensor  # (n,)
    turn: torch.Tensor  # (n,)
    shift: torch.Tensor  # (n, 2)
    mirrored: torch.Tensor  # (n,) bool

    def __len__(self) -> int:
        return len(self.concept)

    def __getitem__(self, index: torch.Tensor | slice) -> Scenes:
        return Scenes(*(value[index] for value in vars(self).values()))


def draw_scenes(
    concept: torch.Tensor, style: torch.Tensor, generator: torch.Generator, spread: torch.Tensor | float = 1.0
) -> Scenes:
    """Draws a background and a pose for each given icon; never a held-out pair of concept and background.

    `spread` says how far poses go from the usual one: 0 is an upright icon in the middle, 1 the whole range.
    """
    num = len(concept)
    spread = torch.as_tensor(spread).expand(num)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(num, *shape, generator=generator)

    colour = torch.randint(1, len(BACKGROUNDS), (num,), generator=generator)
    held_out = torch.zeros(len(CONCEPTS), len(BACKGROUNDS), dtype=torch.bool)
    held_out[tuple(torch.tensor(sorted(held_out_pairs())).T)] = True
    white = (uniform(0, 1) < WHITE_SHARE) | held_out[concept, colour]
    scale = USUAL_SCALE + spread * uniform(MIN_SCALE - USUAL_SCALE, MAX_SCALE - USUAL_SCALE)
    room = spread * (0.06 + 0.8 * (1 - scale))  # a smaller icon has more room before it leaves the picture
    can_mirror = torch.tensor([concept.mirror for concept in CONCEPTS])
    return Scenes(
        concept=concept,
        style=style,
        background=torch.where(white, 0, colour),
        scale=scale,
        turn=spread * uniform(-MAX_TURN, MAX_TURN),
        shift=uniform(-1, 1, 2) * room[:, None],
        mirrored=(uniform(0, 1) < 0.5 * spread) & can_mirror[concept],
    )


def every_icon(num_each: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Concept and style indices in which every icon occurs `num_each` times, shuffled."""
    style, concept = torch.meshgrid(torch.arange(len(STYLES)), torch.arange(len(CONCEPTS)), indexing="ij")
    order = torch.randperm(style.numel() * num_each, generator=generator)
    return concept.flatten().repeat(num_each)[order], style.flatten().repeat(num_each)[order]


def draw_icons(num_each: int, generator: torch.Generator) -> Scenes:
    """Draws `num_each` scenes of every icon, shuffled, in poses of the whole range."""
    return draw_scenes(*every_icon(num_each, generator), generator)


def render(scenes: Scenes, icons: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """Paints scenes.

    Args:
        scenes: What to paint, n of them.
        icons: The store that `load_icons` returns.
        size: Width and height in pixels.

    Returns:
        (n, 3, size, size) in [-1, 1].
    """
    rgba = icons[scenes.style, scenes.concept].permute(0, 3, 1, 2).float() / 255
    alpha = rgba[:, 3:]
    premultiplied = torch.cat((rgba[:, :3] * alpha, alpha), dim=1)  # or edges pick up the colour of clear pixels
    grid = F.affine_grid(_inverse_pose(scenes), [len(scenes), 4, 2 * size, 2 * size], align_corners=False)
    placed = F.avg_pool2d(F.grid_sample(premultiplied, grid, align_corners=False), 2)
    palette = torch.tensor(list(BACKGROUNDS.values())) / 255
    background = palette[scenes.background][:, :, None, None]
    return ((placed[:, :3] + background * (1 - placed[:, 3:])) * 2 - 1).clamp(-1, 1)


def _inverse_pose(scenes: Scenes) -> torch.Tensor:
    """The (n, 2, 3) affine maps from a picture's coordinates to its icon's: unshift, unturn, unscale, mirror."""
    cos, sin = torch.cos(scenes.turn), torch.sin(scenes.turn)
    linear = torch.stack((cos, sin, -sin, cos), dim=1).view(-1, 2, 2) / scenes.scale[:, None, None]
    linear[:, 0] *= torch.where(scenes.mirrored, -1.0, 1.0)[:, None]
    offset = -linear @ scenes.shift[:, :, None]
    return torch.cat((linear, offset), dim=2)
