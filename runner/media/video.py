"""Clips as mp4 files that carry their recipe."""

import errno
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from imageio_ffmpeg import count_frames_and_secs
from PIL import Image

from runner.errors import UserError
from runner.media.image import recipe_json
from runner.media.pixels import check_sizes
from runner.output.write import write_whole

_COMMENT = 100_000  # bytes; Linux refuses a command-line argument of 128 KiB


def save_video(path: Path, frames: Sequence[Image.Image], fps: int, recipe: Mapping[str, Any]) -> None:
    """Write an mp4 (H.264, yuv420p) with its recipe (JSON) as the comment, left out when over 100,000 bytes."""
    if not frames:
        raise UserError(f"{path}: no frames to write; ask the pipeline for at least one")
    if fps < 1:
        raise UserError(f"{path}: fps is {fps}; give at least 1")
    check_sizes(frames, str(path))
    comment = recipe_json(recipe)
    metadata = ["-metadata", f"comment={comment}"] if len(comment) <= _COMMENT else []

    def write(temp: Path) -> None:
        writer = imageio.get_writer(
            temp,
            format="FFMPEG",
            mode="I",
            fps=fps,
            codec="libx264",
            pixelformat="yuv420p",
            macro_block_size=1,
            output_params=metadata,
        )
        with closing(writer):
            for frame in frames:
                array = np.asarray(frame.convert("RGB"))
                height, width, _ = array.shape
                writer.append_data(np.pad(array, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
        # ffmpeg is a process of its own: what it could not write (a full disk) it tells nobody here.
        written, _ = count_frames_and_secs(str(temp))
        if written != len(frames):
            raise OSError(errno.EIO, f"ffmpeg wrote {written} of {len(frames)} frames; is the disk full?", str(path))

    write_whole(path, write)
