"""What was made, as numbers."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from runner.errors import UserError


def pixels(output: Any) -> np.ndarray:
    """A picture as uint8 HWC, frames as uint8 THWC, an array as it is (contiguous)."""
    if isinstance(output, np.ndarray):
        return np.ascontiguousarray(output)
    if isinstance(output, Image.Image):
        return _picture_pixels(output)
    if isinstance(output, Sequence) and output and all(isinstance(frame, Image.Image) for frame in output):
        check_sizes(output, "pixels")
        return np.stack([_picture_pixels(frame) for frame in output])
    raise UserError(f"pixels: cannot read a {type(output).__name__}; give a picture, a list of frames or an array")


def pixel_hash(array: np.ndarray) -> str:
    """The SHA-256 of the array's dtype, shape and bytes."""
    if array.dtype.hasobject:
        raise UserError(f"pixel_hash: an array of {array.dtype} has no bytes of its own; give numbers")
    digest = hashlib.sha256(f"{array.dtype.str} {tuple(array.shape)}\n".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


def check_sizes(frames: Sequence[Image.Image], where: str) -> None:
    """Frames of one video share a size and a mode."""
    for index, frame in enumerate(frames):
        if (frame.size, frame.mode) != (frames[0].size, frames[0].mode):
            raise UserError(
                f"{where}: frame {index} is {frame.size} {frame.mode}, frame 0 is {frames[0].size} {frames[0].mode}; "
                "give frames of one size and mode"
            )


def _picture_pixels(image: Image.Image) -> np.ndarray:
    """One picture as uint8 HWC: gray, RGB and RGBA keep their channels, other modes become RGB or RGBA."""
    if image.mode[0] in "IF":
        raise UserError(f"pixels: a picture of mode {image.mode} is not 8-bit; ask the pipeline for arrays instead")
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    array = np.array(image, dtype=np.uint8)
    return array[..., None] if array.ndim == 2 else array
