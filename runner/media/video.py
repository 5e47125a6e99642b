"""Clips as mp4 files, with their sound, that carry their recipe."""

import errno
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from imageio_ffmpeg import count_frames_and_secs, write_frames
from PIL import Image

from runner.config import Audio, VideoConfig
from runner.errors import UserError
from runner.media.audio import COMMENT, wav
from runner.media.image import recipe_json
from runner.media.pixels import check_sizes
from runner.output.write import write_whole

Frames = Sequence[Image.Image] | np.ndarray


@dataclass(frozen=True)
class Sound:
    """What is heard with a clip: samples (channels, samples), and how many a second."""

    samples: np.ndarray
    rate: int


def save_video(
    path: Path,
    frames: Frames,
    fps: float,
    recipe: Mapping[str, Any],
    *,
    coding: VideoConfig | None = None,
    sound: Sound | None = None,
    sound_coding: Audio = Audio.wav,
) -> None:
    """Write an mp4 (yuv420p) of pictures or of an array (uint8 THWC), with its recipe (JSON) as the comment, left out
    when over 100,000 bytes. Sound becomes AAC, or FLAC where sounds are FLAC files."""
    if not len(frames):
        raise UserError(f"{path}: no frames to write; ask the pipeline for at least one")
    if fps < 1:
        raise UserError(f"{path}: fps is {fps}; give at least 1")
    check_sizes(frames, str(path))
    comment = recipe_json(recipe)
    metadata = ["-metadata", f"comment={comment}"] if len(comment) <= COMMENT else []

    def write(temp: Path) -> None:
        with _heard(path, sound, sound_coding) as audio:
            _encode(temp, frames, fps, coding or VideoConfig(), metadata, audio)
        # ffmpeg is a process of its own: what it could not write (a full disk) it tells nobody here.
        written, _ = count_frames_and_secs(str(temp))
        if written != len(frames):
            raise OSError(errno.EIO, f"ffmpeg wrote {written} of {len(frames)} frames; is the disk full?", str(path))

    write_whole(path, write)


def quality(coding: VideoConfig) -> list[str]:
    """ffmpeg's words for it. 18 is where H.264 begins to look like its source; another codec's scale is its own."""
    crf = 18 if coding.crf is None and coding.codec == VideoConfig.codec else coding.crf
    return [] if crf is None else ["-crf", str(crf)]


def _encode(
    path: Path, frames: Frames, fps: float, coding: VideoConfig, metadata: list[str], audio: Mapping[str, str]
) -> None:
    height, width = _even(frames[0]).shape[:2]
    writer = write_frames(
        path,
        (width, height),
        fps=Fraction(fps).limit_denominator(1001),
        quality=None,
        codec=coding.codec,
        macro_block_size=1,
        ffmpeg_log_level="error",
        output_params=[*quality(coding), *metadata],
        **audio,
    )
    with closing(writer):
        writer.send(None)
        for frame in frames:
            writer.send(_even(frame))


def _even(frame: Image.Image | np.ndarray) -> np.ndarray:
    """As RGB of even sides, which yuv420p needs: the last row and column twice where they are odd."""
    picture = frame if isinstance(frame, Image.Image) else Image.fromarray(frame.squeeze())
    array = np.asarray(picture.convert("RGB"))
    height, width, _ = array.shape
    return np.ascontiguousarray(np.pad(array, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))


@contextmanager
def _heard(path: Path, sound: Sound | None, coding: Audio) -> Iterator[Mapping[str, str]]:
    """The sound as ffmpeg is given it: a file, beside which it gets the frames on its input."""
    if sound is None:
        yield {}
        return
    # Of a name that the next run removes, should this one be killed meanwhile.
    file = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp.wav")
    try:
        file.write_bytes(wav(sound.samples, sound.rate))
        yield {"audio_path": str(file), "audio_codec": "aac" if coding is Audio.wav else "flac"}
    finally:
        file.unlink(missing_ok=True)
