"""The contact sheet: thumbnails of what a job made, with captions."""

import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from runner.output.write import plain_letters, write_whole

_CELL, _GAP, _CAPTION = 256, 8, 18  # the contact sheet's measures, in pixels


def contact_sheet(path: Path, pictures: Sequence[tuple[Path, str]], *, limit: int = 64) -> None:
    """A grid of captioned thumbnails of the first `limit` pictures; no file when there are none to show."""
    shown = [(Path(file), caption) for file, caption in pictures if Path(file).suffix.lower() != ".npy"][:limit]
    if not shown:
        return
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    wide, high = _CELL + _GAP, _CELL + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * wide + _GAP, rows * high + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for index, (file, caption) in enumerate(shown):
        left, top = _GAP + index % columns * wide, _GAP + index // columns * high
        if (thumb := _thumbnail_of(file)) is not None:
            sheet.paste(thumb, (left + (_CELL - thumb.width) // 2, top + (_CELL - thumb.height) // 2))
        draw.text((left, top + _CELL + 2), _cropped(caption, font), fill="black", font=font)
    write_whole(path, lambda temp: sheet.save(temp))


def _thumbnail_of(file: Path) -> Image.Image | None:
    """None where the file cannot be shown: moved, damaged or too large meanwhile. The others still are."""
    try:
        return _thumbnail(_first_frame(file))
    except Exception:  # each format's reader raises kinds of its own
        return None


def _first_frame(file: Path) -> Image.Image:
    """The picture, or the video's first frame, on white."""
    if file.suffix.lower() == ".mp4":
        with closing(imageio.get_reader(file, format="FFMPEG")) as reader:
            return Image.fromarray(np.asarray(reader.get_data(0)))
    with Image.open(file) as opened:
        image = opened.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _thumbnail(image: Image.Image) -> Image.Image:
    """The picture fitted to a cell: reduced, or enlarged by a whole factor (the tiniest with their pixels showing)."""
    side = max(image.size)
    if side > _CELL:
        image.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
        return image
    factor = _CELL // side
    filtering = Image.Resampling.NEAREST if side <= 32 else Image.Resampling.LANCZOS
    return image.resize((image.width * factor, image.height * factor), filtering) if factor > 1 else image


def _cropped(caption: str, font: Any) -> str:
    """The caption on one line, in letters the font has, cut to the cell's width."""
    text = " ".join(plain_letters(caption).split())
    text = "".join(letter if " " <= letter <= "~" else "?" for letter in text)
    if len(text) <= _CELL and font.getlength(text) <= _CELL:
        return text
    text = text[:_CELL]
    while text and font.getlength(text + "...") > _CELL:
        text = text[:-1]
    return text + "..."
