"""The contact sheet: a cell for each request of a job, with its caption."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from runner.media.tile import SIDE, tile
from runner.output.write import plain_letters, write_whole

_GAP, _CAPTION = 8, 18  # in pixels


def contact_sheet(path: Path, requests: Sequence[tuple[Sequence[Path], str]], *, limit: int = 64) -> None:
    """A grid of what the first `limit` requests made, each as its files and a caption; no sheet without any.

    What it shows is in `tile`: pictures, some frames of a clip, the waveform of a sound, the shape of an array.
    """
    shown = requests[:limit]
    if not shown:
        return
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    wide, high = SIDE + _GAP, SIDE + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * wide + _GAP, rows * high + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for index, (files, caption) in enumerate(shown):
        left, top = _GAP + index % columns * wide, _GAP + index // columns * high
        if (thumb := tile(files)) is not None:
            sheet.paste(thumb, (left + (SIDE - thumb.width) // 2, top + (SIDE - thumb.height) // 2))
        draw.text((left, top + SIDE + 2), _cropped(caption, font), fill="black", font=font)
    write_whole(path, lambda temp: sheet.save(temp))


def _cropped(caption: str, font: Any) -> str:
    """The caption on one line, in letters the font has, cut to the cell's width."""
    text = " ".join(plain_letters(caption).split())
    text = "".join(letter if " " <= letter <= "~" else "?" for letter in text)
    if len(text) <= SIDE and font.getlength(text) <= SIDE:
        return text
    text = text[:SIDE]
    while text and font.getlength(text + "...") > SIDE:
        text = text[:-1]
    return text + "..."
