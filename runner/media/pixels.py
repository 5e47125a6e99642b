"""What was made, as numbers."""

import hashlib
from collections.abc import Iterable, Sequence
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
    return _hash(array.dtype, array.shape, [array])


def clip_hash(frames: Any) -> tuple[str, list[int]]:
    """What `pixel_hash` gives of all frames as one array, and the array's shape, with one frame in memory at a time."""
    first = pixels(frames[0])
    shape = [len(frames), *first.shape]
    return _hash(first.dtype, shape, map(pixels, frames)), shape


def eight_bit(array: np.ndarray) -> np.ndarray | None:
    """An array of pictures (..., H, W, C) as diffusers makes pictures of it; None where it is none: no one to four
    channels, or values outside of 0 to 1 (light beyond white, normals, depths)."""
    if array.ndim < 3 or not array.size or array.shape[-1] not in (1, 3, 4):
        return None
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or array.min() < 0 or array.max() > 1:
        return None
    return (array * 255).round().astype(np.uint8)


def check_sizes(frames: Any, where: str) -> None:
    """Frames of one video share a size and a mode."""
    for index, frame in enumerate(frames):
        found, first = _looks(frame), _looks(frames[0])
        if found != first:
            raise UserError(
                f"{where}: frame {index} is {found[0]} {found[1]}, frame 0 is {first[0]} {first[1]}; "
                "give frames of one size and mode"
            )


def _looks(frame: Any) -> tuple[Any, Any]:
    return (frame.size, frame.mode) if isinstance(frame, Image.Image) else (frame.shape, frame.dtype)


def _hash(dtype: np.dtype, shape: Sequence[int], parts: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256(f"{dtype.str} {tuple(shape)}\n".encode())
    for part in parts:
        digest.update(part.tobytes())
    return digest.hexdigest()


def _picture_pixels(image: Image.Image) -> np.ndarray:
    """One picture as uint8 HWC: gray, RGB and RGBA keep their channels, other modes become RGB or RGBA."""
    if image.mode[0] in "IF":
        raise UserError(f"pixels: a picture of mode {image.mode} is not 8-bit; ask the pipeline for arrays instead")
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    array = np.array(image, dtype=np.uint8)
    return array[..., None] if array.ndim == 2 else array
