"""A labelled grid of pictures, one prompt a cell, its seeds side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

_LABEL_HEIGHT, _GAP, _FONT_SIZE = 16, 6, 11


def save_grid(path: Path, prompts: Sequence[str], pictures: torch.Tensor, *, columns: int) -> None:
    """Writes a PNG.

    Args:
        path: Where to.
        prompts: The label of each cell.
        pictures: (prompts, seeds, 3, size, size) in [-1, 1].
        columns: Cells in a row.
    """
    num_seeds, size = pictures.shape[1], pictures.shape[-1]
    width, height = num_seeds * size + _GAP, size + _LABEL_HEIGHT + _GAP
    rows = -(-len(prompts) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "#f2f2f2")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for index, (prompt, seeds) in enumerate(zip(prompts, pictures, strict=True)):
        left, top = _GAP + index % columns * width, _GAP + index // columns * height
        draw.text((left, top), prompt, fill="#202020", font=font)
        pixels = ((seeds.permute(2, 0, 3, 1) + 1) * 127.5).round().clamp(0, 255).byte()  # (size, seeds, size, 3)
        sheet.paste(Image.fromarray(pixels.reshape(size, num_seeds * size, 3).numpy()), (left, top + _LABEL_HEIGHT))
    sheet.save(path, optimize=True)
