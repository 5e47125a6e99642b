"""The look that the default adapter learns: icons redrawn as line art, dark ink on white paper."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .concepts import STYLES

SOURCE = 1  # the flat set: its few plain areas give clean outlines, gradients give smears
INK = (0.10, 0.10, 0.20)
LINE_WIDTH = 5  # in pixels of the icons' 128; half of it remains at 64, the least that the autoencoder keeps apart
FAINTEST_EDGE, EDGE_GAIN = 0.12, 4.0  # differences of colour below the first are no line, from 0.12 + 1 / 4 a full one
FAINTEST_OUTLINE, OUTLINE_GAIN = 0.2, 2.0  # the same for the outline, where opacity differs


def line_art(icons: torch.Tensor) -> torch.Tensor:
    """Redraws every style of a store of icons from its flat one.

    All styles become the same, so that captions may go on naming one: the look must not depend on the word.

    Args:
        icons: What `load_icons` returns, RGBA of shape (styles, concepts, 128, 128, 4).

    Returns:
        The same shape and type; only ink and white, with the outline drawn around the icon.
    """
    flat = icons[SOURCE].permute(0, 3, 1, 2).float() / 255
    opacity = flat[:, 3:]
    on_white = flat[:, :3] * opacity + 1 - opacity
    edges = _range_nearby(on_white).amax(dim=1, keepdim=True)
    outline = _range_nearby(opacity)
    inside = ((edges - FAINTEST_EDGE) * EDGE_GAIN).clamp(0, 1)
    around = ((outline - FAINTEST_OUTLINE) * OUTLINE_GAIN).clamp(0, 1)
    line = torch.maximum(inside, around)
    ink = torch.tensor(INK)[:, None, None]
    drawn = torch.cat((1 - line + line * ink, torch.maximum(opacity, outline)), dim=1)
    drawn = (drawn * 255).round().byte().permute(0, 2, 3, 1)
    return drawn.expand(len(STYLES), *drawn.shape).contiguous()


def _range_nearby(image: torch.Tensor) -> torch.Tensor:
    """Greatest less least value within a line's width of each pixel, after a small blur that rounds the lines."""
    image = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
    padding = LINE_WIDTH // 2
    return F.max_pool2d(image, LINE_WIDTH, 1, padding) + F.max_pool2d(-image, LINE_WIDTH, 1, padding)
