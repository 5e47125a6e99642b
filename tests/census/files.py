"""The files that cases are given: pictures, a mask, a clip of a few pixels, numbers; and how stock code reads them."""

from pathlib import Path
from typing import Any

import imageio
import numpy as np
import torch
from diffusers.utils import load_image, load_video
from PIL import Image

SIZE = 64  # pixels; the least that some pipelines take, and a multiple of 16, which video codecs like
NUM_FRAMES = 9


def write_file(folder: Path, name: str) -> None:
    """Write the input file of this name."""
    if name.endswith(".npy"):
        shape = [int(size) for size in name.removesuffix(".npy").split("x")]
        np.save(folder / name, np.random.default_rng(4).standard_normal(shape, np.float32))
    elif name.endswith(".mp4"):
        frames = [_picture(seed=10 + i) for i in range(NUM_FRAMES)]
        imageio.mimwrite(folder / name, frames, fps=8, macro_block_size=1)  # type: ignore[arg-type]
    else:
        seed = {"picture.png": 1, "other.png": 2, "mask.png": 0}[name]
        Image.fromarray(_picture(seed) if seed else _mask()).save(folder / name)


def read_as_stock(path: Path, mode: str = "") -> Any:
    """As the documentation of diffusers reads a file for a pipeline."""
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path))
    if path.suffix == ".mp4":
        return load_video(str(path))
    return load_image(str(path), (lambda picture: picture.convert(mode)) if mode else None)


def _picture(seed: int) -> np.ndarray:
    """Colours that run across it, and a little noise: (SIZE, SIZE, 3) bytes."""
    ramp = np.linspace(0, 200, SIZE)
    channels = [np.broadcast_to(one, (SIZE, SIZE)) for one in (ramp, ramp[:, None], ramp[::-1])]
    noise = np.random.default_rng(seed).integers(0, 56, (SIZE, SIZE, 3))
    return (np.stack(channels, axis=-1) + noise).astype(np.uint8)


def _mask() -> np.ndarray:
    """White where the picture is to be made anew: the right half."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, SIZE // 2 :] = 255
    return mask
