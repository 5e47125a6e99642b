"""What a pipeline made, written as the file of its kind."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from runner.media.image import save_array, save_picture
from runner.media.pixels import pixel_hash, pixels
from runner.media.video import save_video
from runner.output.folder import Folder
from runner.output.manifest import file_facts
from runner.request import Request


def save(made: Any, request: Request, folder: Folder, fps: int) -> dict[str, Any]:
    """Write it below `folder`. Returns what the manifest says of the file: its name relative to the folder, the hash of
    the raw pixels, its size, time and hash."""
    array = pixels(made)
    stem = folder.images / request.stem
    if isinstance(made, np.ndarray):
        file = _with_ending(stem, ".npy")
        save_array(file, array)
    elif isinstance(made, Image.Image):
        file = _with_ending(stem, ".png")
        save_picture(file, made, request.described())
    else:
        file = _with_ending(stem, ".mp4")
        save_video(file, made, fps, request.described())
    return {"file": str(file.relative_to(folder.path)), "sha256": pixel_hash(array), **file_facts(file)}


def _with_ending(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)
