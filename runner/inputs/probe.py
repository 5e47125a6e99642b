"""What kind of file something is, and whether it can be read: from its header, not from its name."""

import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import imageio_ffmpeg
import numpy as np
import soundfile
from PIL import Image
from safetensors import safe_open

HEAD = 64  # bytes that tell the kind
_ORIENTATION = 0x0112  # Exif's tag; from 5 on, width and height change places
_PICTURE_BRANDS = (b"avif", b"avis")
_SOUNDS = (b"fLaC", b"ID3", b"FORM", b".snd", b"caff", b"RF64")
_VIDEOS = (b"\x1aE\xdf\xa3", b"\x00\x00\x01\xba", b"FLV")
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_RIFF = {b"WAVE": "sound", b"AVI ": "video", b"WEBP": "picture"}


class Kind(Enum):
    """What a file holds, as messages call it."""

    picture = "a picture"
    animation = "an animation"  # a GIF: its first picture, or its frames
    video = "a video"
    sound = "sound"
    array = "an array"
    tensors = "tensors"


class Unreadable(ValueError):
    """Why a file cannot be read, in words."""


@dataclass(frozen=True)
class Probe:
    """`shape`: width and height, then frames and their rate; samples, channels and their rate; of an array, its own.
    `tensors` are those of a file of them, each with its type and shape. `decoded_bytes`: what it takes in memory."""

    kind: Kind
    shape: tuple[Any, ...] = ()
    decoded_bytes: int = 0
    tensors: dict[str, tuple[Any, ...]] = field(default_factory=dict)


def probe(path: Path) -> Probe:
    """Raises Unreadable, or OSError."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        try:
            return _READERS[_kind(path, head)](path, file)
        except Unreadable:
            raise
        except Exception as error:  # whatever a decoder raises over bytes that are not what their head promises
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's
            what = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            raise Unreadable(f"is damaged ({what})") from error


def _kind(path: Path, head: bytes) -> Kind:
    if not head:
        raise Unreadable("is empty")
    if head.startswith(b"\x93NUMPY"):
        return Kind.array
    if path.suffix == ".safetensors":
        return Kind.tensors
    if head.startswith(_PICKLES):
        raise Unreadable("is a pickle or an archive, which is not read; save it as .safetensors or .npy")
    if head[:4] == b"RIFF" and head[8:12] in _RIFF:
        return Kind[_RIFF[head[8:12]]]
    if head[4:8] == b"ftyp":
        return Kind.picture if head[8:12] in _PICTURE_BRANDS else Kind.video
    if head[:4] == b"OggS":
        return Kind.video if b"theora" in head else Kind.sound
    if head[:4] == b"GIF8":
        return Kind.animation
    if head.startswith(_SOUNDS) or (head[0] == 0xFF and head[1:2] >= b"\xe0"):  # frames of MP3 begin with 11 ones
        return Kind.sound
    return Kind.video if head.startswith(_VIDEOS) else Kind.picture


def _picture(path: Path, file: BinaryIO) -> Probe:
    try:
        picture = _open_picture(file)
    except Image.UnidentifiedImageError as error:
        return _rare_sound(path, file, error)
    is_turned = "exif" in picture.info and picture.getexif().get(_ORIENTATION, 1) >= 5
    width, height = picture.size
    _check_whole(picture, file)
    return Probe(Kind.picture, (height, width) if is_turned else (width, height), 4 * width * height)


def _open_picture(file: BinaryIO) -> Image.Image:
    file.seek(0)
    try:
        picture = Image.open(file)
    except Image.DecompressionBombError as error:
        raise Unreadable(f"is too large: {error}") from error
    if picture.format == "EPS":
        raise Unreadable("is a program (PostScript), which is not run; save it as PNG")
    return picture


def _rare_sound(path: Path, file: BinaryIO, error: Exception) -> Probe:
    """Of one of the many formats that libsndfile knows by more than their first bytes."""
    try:
        return _sound(path, file)
    except soundfile.LibsndfileError:
        file.seek(0)
        begins = file.read(12)
        raise Unreadable(f"begins with {begins!r}, which is no picture, video, sound, array or tensors") from error


def _check_whole(picture: Image.Image, file: BinaryIO) -> None:
    """Whether something is missing at the end, as of a copy that was cut short."""
    if picture.format == "PNG":
        picture.verify()  # the sums of its chunks
        return
    size = file.seek(0, 2)
    if picture.format == "JPEG":
        file.seek(max(size - (1 << 16), 0))
        if b"\xff\xd9" in file.read():  # its end, after which cameras write more
            return
    if picture.format == "WEBP":
        file.seek(4)
        if int.from_bytes(file.read(4), "little") + 8 <= size:
            return
    file.seek(0)
    with Image.open(file) as again:  # formats that say nothing of their length
        again.load()


def _animation(path: Path, file: BinaryIO) -> Probe:
    picture = _open_picture(file)
    frames = getattr(picture, "n_frames", 1)
    return Probe(Kind.animation, (*picture.size, frames), 4 * math.prod(picture.size) * frames)


def _video(path: Path, file: BinaryIO) -> Probe:
    reader = imageio_ffmpeg.read_frames(str(path))
    try:
        told = next(reader)
    finally:
        reader.close()
    size, rate, seconds = told["size"], told["fps"], told["duration"]
    return Probe(Kind.video, (*size, rate, seconds), round(4 * math.prod(size) * rate * seconds))


def _sound(path: Path, file: BinaryIO) -> Probe:
    told = soundfile.info(str(path))
    return Probe(Kind.sound, (told.channels, told.frames, told.samplerate), 4 * told.channels * told.frames)


def _array(path: Path, file: BinaryIO) -> Probe:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return Probe(Kind.array, (str(array.dtype), *array.shape), array.nbytes)


def _tensors(path: Path, file: BinaryIO) -> Probe:
    with safe_open(path, "pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        shapes = {name: (one.get_dtype(), *one.get_shape()) for name, one in slices.items()}
    if not shapes:
        raise Unreadable("holds no tensor")
    return Probe(Kind.tensors, (), path.stat().st_size, shapes)


_READERS = {
    Kind.picture: _picture,
    Kind.animation: _animation,
    Kind.video: _video,
    Kind.sound: _sound,
    Kind.array: _array,
    Kind.tensors: _tensors,
}
