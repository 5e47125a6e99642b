"""What a run leaves behind: pictures, videos, arrays and a contact sheet, each written whole or not at all."""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from imageio_ffmpeg import count_frames_and_secs
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from runner.errors import UserError

_CELL, _GAP, _CAPTION = 256, 8, 18  # the contact sheet's measures, in pixels
_COMMENT = 100_000  # bytes; Linux refuses a command-line argument of 128 KiB


def slug(prompt: str | int, limit: int = 40) -> str:
    """A file name part: lower-case ASCII letters, digits and hyphens, never empty."""
    part = re.sub(r"[^a-z0-9]+", "-", _plain_letters(str(prompt)).lower()).strip("-")
    return part[: max(limit, 0)].strip("-") or "untitled"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a hidden temporary file beside `path`, then move it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, not the process's id: nodes share the folder, and a process may write one file from two threads.
    temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        write(temp)
        with temp.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    write_whole(path, lambda temp: temp.write_text(text, encoding="utf-8", errors="replace"))


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; empty when there is no such file, or none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def pixels(output: Any) -> np.ndarray:
    """A picture as uint8 HWC, frames as uint8 THWC, an array as it is (contiguous)."""
    if isinstance(output, np.ndarray):
        return np.ascontiguousarray(output)
    if isinstance(output, Image.Image):
        return _picture_pixels(output)
    if isinstance(output, Sequence) and output and all(isinstance(frame, Image.Image) for frame in output):
        _check_sizes(output, "pixels")
        return np.stack([_picture_pixels(frame) for frame in output])
    raise UserError(f"pixels: cannot read a {type(output).__name__}; give a picture, a list of frames or an array")


def pixel_hash(array: np.ndarray) -> str:
    """The SHA-256 of the array's dtype, shape and bytes."""
    if array.dtype.hasobject:
        raise UserError(f"pixel_hash: an array of {array.dtype} has no bytes of its own; give numbers")
    digest = hashlib.sha256(f"{array.dtype.str} {tuple(array.shape)}\n".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


def save_picture(path: Path, image: Image.Image, recipe: Mapping[str, Any]) -> None:
    """Write a PNG that carries its recipe (JSON) and its prompt as text chunks."""
    info = PngInfo()
    info.add_itxt("recipe", _recipe_json(recipe))
    if recipe.get("prompt") is not None:
        info.add_itxt("prompt", str(recipe["prompt"]).encode("utf-8", "replace").decode("utf-8"))
    write_whole(path, lambda temp: image.save(temp, format="PNG", pnginfo=info))


def save_video(path: Path, frames: Sequence[Image.Image], fps: int, recipe: Mapping[str, Any]) -> None:
    """Write an mp4 (H.264, yuv420p) with its recipe (JSON) as the comment, left out when over 100,000 bytes."""
    if not frames:
        raise UserError(f"{path}: no frames to write; ask the pipeline for at least one")
    if fps < 1:
        raise UserError(f"{path}: fps is {fps}; give at least 1")
    _check_sizes(frames, str(path))
    comment = _recipe_json(recipe)
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


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy."""

    def write(temp: Path) -> None:
        with temp.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    write_whole(path, write)


def contact_sheet(path: Path, pictures: Sequence[tuple[Path, str]], *, limit: int = 64) -> None:
    """A grid of captioned thumbnails of the first `limit` pictures; no file when there are none to show."""
    shown = [(Path(file), caption) for file, caption in pictures if Path(file).suffix.lower() != ".npy"][:limit]
    if not shown:
        return
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    wide, high = _CELL + _GAP, _CELL + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * wide + _GAP, rows * high + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for index, (file, caption) in enumerate(shown):
        left, top = _GAP + index % columns * wide, _GAP + index // columns * high
        thumb = _thumbnail(_first_frame(file))
        sheet.paste(thumb, (left + (_CELL - thumb.width) // 2, top + (_CELL - thumb.height) // 2))
        draw.text((left, top + _CELL + 2), _cropped(caption, font), fill="black", font=font)
    write_whole(path, lambda temp: sheet.save(temp))


def _plain_letters(text: str) -> str:
    """The text with its accents and compatibility forms taken apart and the accents dropped."""
    return "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))


def _picture_pixels(image: Image.Image) -> np.ndarray:
    """One picture as uint8 HWC: gray, RGB and RGBA keep their channels, other modes become RGB or RGBA."""
    if image.mode[0] in "IF":
        raise UserError(f"pixels: a picture of mode {image.mode} is not 8-bit; ask the pipeline for arrays instead")
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    array = np.array(image, dtype=np.uint8)
    return array[..., None] if array.ndim == 2 else array


def _check_sizes(frames: Sequence[Image.Image], where: str) -> None:
    """Frames of one video share a size and a mode."""
    for index, frame in enumerate(frames):
        if (frame.size, frame.mode) != (frames[0].size, frames[0].mode):
            raise UserError(
                f"{where}: frame {index} is {frame.size} {frame.mode}, frame 0 is {frames[0].size} {frames[0].mode}; "
                "give frames of one size and mode"
            )


def _recipe_json(recipe: Mapping[str, Any]) -> str:
    """The recipe as ASCII JSON; values JSON does not know become objects, numbers or text."""
    return json.dumps(dict(recipe), default=_known)


def _known(value: Any) -> Any:
    """A value in JSON's terms."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def _first_frame(file: Path) -> Image.Image:
    """The picture, or the video's first frame, on white."""
    if file.suffix.lower() == ".mp4":
        with closing(imageio.get_reader(file, format="FFMPEG")) as reader:
            return Image.fromarray(np.asarray(reader.get_data(0)))
    with Image.open(file) as opened:
        image = opened.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _thumbnail(image: Image.Image) -> Image.Image:
    """The picture fitted to a cell: reduced, or enlarged by a whole factor (the tiniest with their pixels showing)."""
    side = max(image.size)
    if side > _CELL:
        image.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
        return image
    factor = _CELL // side
    filtering = Image.Resampling.NEAREST if side <= 32 else Image.Resampling.LANCZOS
    return image.resize((image.width * factor, image.height * factor), filtering) if factor > 1 else image


def _cropped(caption: str, font: Any) -> str:
    """The caption on one line, in letters the font has, cut to the cell's width."""
    text = " ".join(_plain_letters(caption).split())
    text = "".join(letter if " " <= letter <= "~" else "?" for letter in text)
    if len(text) <= _CELL and font.getlength(text) <= _CELL:
        return text
    text = text[:_CELL]
    while text and font.getlength(text + "...") > _CELL:
        text = text[:-1]
    return text + "..."
