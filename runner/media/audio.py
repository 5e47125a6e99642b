"""Sounds as files that carry their recipe: WAV with the samples as they are, or FLAC."""

import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe

from runner.config import Audio
from runner.errors import UserError
from runner.media.image import recipe_json
from runner.output.write import write_whole

_FLOAT = 3  # WAVE_FORMAT_IEEE_FLOAT
_LARGEST = (1 << 32) - (1 << 20)  # a RIFF file counts its bytes in 32 bits
COMMENT = 100_000  # bytes of a recipe at most: Linux refuses a command-line argument of 128 KiB


def save_sound(path: Path, samples: np.ndarray, rate: int, recipe: Mapping[str, Any], format: Audio) -> str:
    """Write samples (channels, samples), `rate` of them a second; what the file does not hold as it was, in words.

    WAV holds 32-bit floats: what pipelines give is float, and may go beyond 1, where files of 16 bits would clip. FLAC
    holds 24 bits, so that it rounds (to 1/8,388,608) and clips.
    """
    comment = recipe_json(recipe)
    comment = comment if len(comment) <= COMMENT else ""
    content = wav(samples, rate, comment)
    if format is Audio.wav:
        write_whole(path, lambda temp: temp.write_bytes(content))
        return ""
    write_whole(path, lambda temp: _to_flac(content, temp, comment))
    beyond = int((np.abs(samples) > 1).sum())
    return f"{beyond} of {samples.size} samples are beyond 1 and clipped; job.audio=wav keeps them" if beyond else ""


def wav(samples: np.ndarray, rate: int, comment: str = "") -> bytes:
    """The bytes of a WAV file: 32-bit floats, with an ASCII comment."""
    data = np.ascontiguousarray(samples.T, dtype="<f4").tobytes()
    channels = samples.shape[0]
    if not (1 <= channels < 1 << 16 and len(data) < _LARGEST):
        raise UserError(f"no WAV file can hold {samples.shape} samples; use job.format=npy")
    # A format other than integers says its extension's size (none), and how many samples a channel has.
    layout = struct.pack("<HHIIHHH", _FLOAT, channels, rate, rate * channels * 4, channels * 4, 32, 0)
    chunks = _chunk(b"fmt ", layout) + _chunk(b"fact", struct.pack("<I", samples.shape[1]))
    if comment:
        chunks += _chunk(b"LIST", b"INFO" + _chunk(b"ICMT", comment.encode("ascii") + b"\0"))
    return _chunk(b"RIFF", b"WAVE" + chunks + _chunk(b"data", data))


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _to_flac(content: bytes, path: Path, comment: str) -> None:
    command = [get_ffmpeg_exe(), "-v", "error", "-y", "-i", "pipe:0", "-c:a", "flac", "-sample_fmt", "s32"]
    run_ffmpeg([*command, "-metadata", f"comment={comment}", str(path)], content)


def run_ffmpeg(command: list[str], content: bytes = b"") -> bytes:
    """What ffmpeg writes to its output, given `content` on its input. Raises OSError with its last line."""
    done = subprocess.run(command, input=content, capture_output=True, start_new_session=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with {done.returncode}"]
        raise OSError(f"ffmpeg: {said[-1]}")
    return done.stdout
