"""A small picture of what a request made, for the report: full ones would make ten thousand slow to look through.

Made while the output is in memory: 2 ms for a picture of 1024x1024, whose PNG takes 700 ms to write and 60 to read.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from runner.media.tile import SIDE, on_pale_ground, waveform


def write_thumbnail(path: Path, image: Image.Image) -> None:
    """A JPEG of 511 pixels at most on the longer side."""
    path.parent.mkdir(exist_ok=True)
    # Neither flushed nor renamed: one that a kill cuts short costs an empty cell, and the report can do without.
    on_pale_ground(image.reduce(max(1, max(image.size) // SIDE))).save(path, format="JPEG", quality=80)


def needs_none(image: Image.Image) -> bool:
    """A picture that is small itself."""
    return max(image.size) < 2 * SIDE


def of_clip(frames: Any) -> Image.Image:
    """Its middle frame: the first and the last are often black."""
    frame = frames[len(frames) // 2]
    if isinstance(frame, Image.Image):
        return frame
    return Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame)


def of_sound(samples: np.ndarray) -> Image.Image:
    """The waveform of its first channel."""
    return waveform(np.asarray(samples[0], dtype=np.float32), SIDE, SIDE)
