"""What a request made, in one cell of the contact sheet."""

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from imageio_ffmpeg import count_frames_and_secs, get_ffmpeg_exe
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open

from runner.media.audio import run_ffmpeg

SIDE = 256  # of a cell, in pixels
_GAP = 4
_SOUND = 48  # height of the waveform below a clip
_LINE = 24  # of a line of text
_FRAMES = 4  # of a clip, and pictures of a request
_RATE = 8_000  # samples a second that a waveform is drawn from
_GRAY, _BLUE, _PALE = "#555555", "#2a6fb0", "#eef2f6"


def tile(files: Sequence[Path]) -> Image.Image | None:
    """Of the request's files what fits: up to four pictures, else the first file of another kind. None where it cannot
    be shown: moved, damaged or too large meanwhile. The others still are."""
    pictures = [file for file in files if file.suffix.lower() == ".png"]
    try:
        if pictures:
            return mosaic([_picture(file) for file in pictures[:_FRAMES]], SIDE)
        return _OF_ENDING.get(files[0].suffix.lower(), _nothing)(files[0]) if files else None
    except Exception:  # each format's reader raises kinds of its own
        return None


def mosaic(pictures: Sequence[Image.Image], height: int) -> Image.Image:
    """The pictures side by side and below each other, in the rows and columns that show them largest, and leave
    no gap."""
    if len(pictures) == 1:
        return _fitted(pictures[0], SIDE, height)
    wide, high = pictures[0].size

    def cell(columns: int) -> tuple[int, int]:
        rows = math.ceil(len(pictures) / columns)
        return (SIDE - _GAP * (columns - 1)) // columns, (height - _GAP * (rows - 1)) // rows

    def worth(columns: int) -> tuple[float, int, int]:
        size = min(cell(columns)[0] / wide, cell(columns)[1] / high)
        return size, -(-len(pictures) % columns), columns

    columns = max(range(1, len(pictures) + 1), key=worth)
    width, depth = cell(columns)
    thumbs = [_fitted(picture, width, depth) for picture in pictures]
    across, down = max(thumb.width for thumb in thumbs) + _GAP, max(thumb.height for thumb in thumbs) + _GAP
    rows = math.ceil(len(thumbs) / columns)
    shown = Image.new("RGB", (columns * across - _GAP, rows * down - _GAP), "white")
    for index, thumb in enumerate(thumbs):
        shown.paste(thumb, (index % columns * across, index // columns * down))
    return shown


def waveform(samples: np.ndarray, width: int, height: int) -> Image.Image:
    """The loudest sample each way of each column of pixels, against the loudest of all."""
    picture = Image.new("RGB", (width, height), _PALE)
    draw, middle = ImageDraw.Draw(picture), height // 2
    draw.line([(0, middle), (width, middle)], fill="#c3ccd6")
    loudest = float(np.abs(samples).max(initial=0)) or 1.0
    for column, part in enumerate(np.array_split(samples, width)):
        if part.size:
            top, bottom = (middle - float(value) / loudest * (middle - 2) for value in (part.max(), part.min()))
            draw.line([(column, round(top)), (column, round(bottom))], fill=_BLUE)
    return picture


def on_pale_ground(image: Image.Image) -> Image.Image:
    """Where it is transparent, so that a layer is told from the sheet."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, _PALE), image).convert("RGB")


def _picture(file: Path) -> Image.Image:
    with Image.open(file) as opened:
        return on_pale_ground(opened)


def _clip(file: Path) -> Image.Image:
    """Frames from its whole length, the first and the last among them, and its sound below."""
    count, _ = count_frames_and_secs(str(file))
    wanted = sorted({round(index * (count - 1) / max(1, _FRAMES - 1)) for index in range(_FRAMES)})
    with closing(imageio.get_reader(file, format="FFMPEG")) as reader:
        has_sound = "audio_codec" in reader.get_meta_data()
        frames = [
            Image.fromarray(np.asarray(frame)) for index, frame in enumerate(reader.iter_data()) if index in wanted
        ]
    if not has_sound:
        return mosaic(frames, SIDE)
    above, below = mosaic(frames, SIDE - _SOUND - _GAP), waveform(_samples(file), SIDE, _SOUND)
    shown = Image.new("RGB", (SIDE, above.height + _GAP + below.height), "white")
    shown.paste(above, ((SIDE - above.width) // 2, 0))
    shown.paste(below, (0, above.height + _GAP))
    return shown


def _sound(file: Path) -> Image.Image:
    samples = _samples(file)
    shown = Image.new("RGB", (SIDE, SIDE // 2 + _LINE), "white")
    shown.paste(waveform(samples, SIDE, SIDE // 2))
    _write(shown, [f"{len(samples) / _RATE:.2f} s"], SIDE // 2 + _LINE // 2)
    return shown


def _samples(file: Path) -> np.ndarray:
    """Of a sound or a clip's sound, as one channel."""
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(file), "-vn", "-ac", "1", "-ar", str(_RATE), "-f", "f32le"]
    return np.frombuffer(run_ffmpeg([*command, "pipe:1"]), dtype="<f4")


def _array(file: Path) -> Image.Image:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    return _placeholder(["array", " x ".join(map(str, array.shape)), str(array.dtype)])


def _latents(file: Path) -> Image.Image:
    with safe_open(file, "numpy") as tensors:
        names = list(tensors.keys())
        shapes = [f"{name} {' x '.join(map(str, tensors.get_slice(name).get_shape()))}" for name in names[:4]]
    return _placeholder(["latents", *shapes, *(["..."] if len(names) > 4 else [])])


def _nothing(file: Path) -> Image.Image:
    return _placeholder([file.suffix.lstrip(".")])


def _placeholder(lines: Sequence[str]) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE // 2), _PALE)
    _write(picture, lines, picture.height // 2)
    return picture


def _write(picture: Image.Image, lines: Sequence[str], middle: int) -> None:
    """Centred, around this height."""
    where, font, text = (picture.width // 2, middle), ImageFont.load_default(size=14), "\n".join(lines)
    ImageDraw.Draw(picture).multiline_text(where, text, fill=_GRAY, font=font, anchor="mm", align="center", spacing=6)


def _fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """Reduced to fit, or enlarged by a whole factor (the tiniest with their pixels showing)."""
    factor = min(width // image.width, height // image.height)
    if factor < 1:
        fitted = image.copy()
        fitted.thumbnail((max(1, width), max(1, height)), Image.Resampling.LANCZOS)
        return fitted
    filtering = Image.Resampling.NEAREST if max(image.size) <= 32 else Image.Resampling.LANCZOS
    return image.resize((image.width * factor, image.height * factor), filtering) if factor > 1 else image


_OF_ENDING: dict[str, Callable[[Path], Image.Image]] = {
    ".mp4": _clip,
    ".wav": _sound,
    ".flac": _sound,
    ".npy": _array,
    ".safetensors": _latents,
}
