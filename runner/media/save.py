"""What a pipeline made, written as the files of its kinds."""

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from runner.config import Format, JobConfig
from runner.errors import UserError
from runner.media.arrays import latents_hash, save_array, save_latents
from runner.media.audio import save_sound
from runner.media.coding import check_coding
from runner.media.image import save_picture
from runner.media.output_type import output_type
from runner.media.outputs import Kind, Outputs, Piece, numbers, told_apart
from runner.media.pixels import clip_hash, eight_bit, pixel_hash, pixels
from runner.media.rates import FRAME_RATES, frame_rate, sampling_rate
from runner.media.thumbnail import needs_none, of_clip, of_sound, write_thumbnail
from runner.media.video import Sound, save_video
from runner.output.folder import Folder
from runner.output.lines import OutputFile
from runner.output.manifest import file_facts
from runner.request import Request

FRAMES_A_SECOND = 16  # where neither the pipeline nor job.fps says


@dataclass(frozen=True)
class Writing:
    """How a job's outputs become files: its settings, and the pipeline, which knows how fast what it makes plays."""

    job: JobConfig
    stock: Any

    def frame_rate(self, call: Mapping[str, Any]) -> float:
        return frame_rate(type(self.stock), call) or self.job.fps or FRAMES_A_SECOND


def settled_writing(cls: Any, job: JobConfig) -> JobConfig:
    """The job with the frame rate that it will use, checked against the pipeline's class and the ffmpeg at hand.

    Raises UserError: a format that the pipeline does not have, a codec that ffmpeg cannot write, a frame rate beside
    the pipeline's own.
    """
    output_type(cls, job.format)
    check_coding(job.video)
    own = frame_rate(cls, job.call)
    if own is not None and job.fps not in (None, own):
        argument = next(name for name in FRAME_RATES if name in inspect.signature(cls.__call__).parameters)
        raise UserError(
            f"job.fps is {job.fps:g}, and {cls.__name__} makes clips of {own:g} frames a second: leave it out, or say "
            f"job.call.{argument}"
        )
    return replace(job, fps=own or job.fps or FRAMES_A_SECOND)


def to_write(output: Any, writing: Writing) -> Outputs:
    """All fields of a call's output, on the host: they can wait to be written, and the device is the next request's.

    Raises UserError where there is nothing to write."""
    outputs = told_apart(output, as_latents=writing.job.format is Format.latent)
    if not outputs.pieces:
        what = ", ".join([*outputs.values, *(f"{name} ({reason})" for name, reason in outputs.left_out.items())])
        raise UserError(f"{type(output).__name__} holds nothing that has a file: {what or 'no field is set'}")
    return replace(outputs, pieces=[replace(piece, value=_on_host(piece.value)) for piece in outputs.pieces])


def save(outputs: Outputs, request: Request, folder: Folder, writing: Writing) -> dict[str, Any]:
    """Write all pieces below `folder`, in any thread. Returns what the manifest says: the files, the values that need
    none, and what is left out and why."""
    format = writing.job.format
    rate = outputs.values.get("sampling_rate") or sampling_rate(writing.stock)
    write = _Written(request, folder, writing, rate, first_field=outputs.pieces[0].field)
    if format is Format.auto and (pair := _clip_with_sound(outputs, rate)):
        files = [write.clip(*pair), *(write.piece(one) for one in outputs.pieces if one not in pair)]
    else:
        files = [write.piece(piece) for piece in outputs.pieces]
    first = {name: getattr(files[0], name) for name in ("file", "bytes", "mtime_ns", "file_sha256", "sha256")}
    return {**first, "files": tuple(files), "values": outputs.values, "left_out": outputs.left_out}


def _on_host(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: tensor.cpu() for name, tensor in value.items()}
    return value.cpu() if isinstance(value, torch.Tensor) else value


def _clip_with_sound(outputs: Outputs, rate: int | None) -> tuple[Piece, Piece] | None:
    """The clip and the sound that belong together: where there is one of each, and its sampling rate is known."""
    clips = [piece for piece in outputs.pieces if piece.kind is Kind.clip]
    sounds = [piece for piece in outputs.pieces if piece.kind is Kind.sound]
    return (clips[0], sounds[0]) if len(clips) == len(sounds) == 1 and rate is not None else None


class _Written:
    """Writes one request's pieces. `rate`: samples of sound a second, where that is known."""

    def __init__(self, request: Request, folder: Folder, writing: Writing, rate: int | None, first_field: str) -> None:
        self._request, self._folder, self._writing, self._first_field = request, folder, writing, first_field
        self._recipe = request.described()
        self._rate = rate
        self._has_thumbnail = False

    def piece(self, piece: Piece) -> OutputFile:
        if piece.kind is Kind.latents:
            file = self._path(piece, ".safetensors")
            save_latents(file, piece.value, self._recipe)
            return self._file(piece, file, latents_hash(piece.value), [len(piece.value)])
        if self._writing.job.format is not Format.auto or piece.kind is Kind.array:
            return self._array(piece)
        return {Kind.picture: self._picture, Kind.clip: self.clip, Kind.sound: self._sound}[piece.kind](piece)

    def clip(self, piece: Piece, sound: Piece | None = None) -> OutputFile:
        """Frames as an mp4, with the sound in it; one frame as a picture; as an array what is not eight bits."""
        frames = _frames(piece.value)
        if frames is None:
            return self._array(piece, "its values are not those of pictures, 0 to 1")
        if len(frames) == 1 and sound is None:
            return self._picture(replace(piece, value=frames[0]))
        fps, file = self._writing.frame_rate(self._request.call), self._path(piece, ".mp4")
        job, heard = self._writing.job, Sound(sound.value, self._rate or 0) if sound else None
        save_video(file, frames, fps, self._recipe, coding=job.video, sound=heard, sound_coding=job.audio)
        self._thumbnail(lambda: of_clip(frames))
        sha256, shape = clip_hash(frames)
        told: dict[str, Any] = {"fps": fps}
        if sound is not None:
            told |= {"sound_field": sound.field, "sound_sha256": pixel_hash(sound.value)}
            told |= {"sampling_rate": self._rate}
        if shape[-1] == 4:
            told["note"] = "an mp4 holds no transparency; job.format=npy keeps it"
        return self._file(piece, file, sha256, shape, **told)

    def _picture(self, piece: Piece) -> OutputFile:
        image = piece.value if isinstance(piece.value, Image.Image) else _image(piece.value)
        if image is None or image.mode[0] in "IF":  # 16 bits, floats: no PNG that each reader reads alike
            return self._array(piece, "its values are not eight bits a channel")
        file = self._path(piece, ".png")
        save_picture(file, image, self._recipe)
        if not needs_none(image):
            self._thumbnail(lambda: image)
        array = pixels(image)
        return self._file(piece, file, pixel_hash(array), list(array.shape))

    def _sound(self, piece: Piece) -> OutputFile:
        if self._rate is None:
            return self._array(piece, "how many samples a second it has, neither the pipeline nor its parts say")
        format = self._writing.job.audio
        samples, file = piece.value, self._path(piece, f".{format.value}")
        note = save_sound(file, samples, self._rate, self._recipe, format)
        self._thumbnail(lambda: of_sound(samples))
        told = {"sampling_rate": self._rate, "note": note}
        return self._file(piece, file, pixel_hash(samples), list(samples.shape), **told)

    def _array(self, piece: Piece, note: str = "") -> OutputFile:
        array = _array_of(piece.value)
        file = self._path(piece, ".npy")
        save_array(file, array)
        return self._file(piece, file, pixel_hash(array), list(array.shape), note=note)

    def _thumbnail(self, image: Callable[[], Image.Image]) -> None:
        """Of the first piece that has one. The report can do without: what was made is on the disk already."""
        if self._has_thumbnail or not self._writing.job.report:
            return
        self._has_thumbnail = True
        with suppress(OSError, ValueError):
            write_thumbnail(self._folder.thumbnail(self._request.stem), image())

    def _path(self, piece: Piece, ending: str) -> Path:
        """The first field's is the request's own name. A stem has no dot, so what is behind one tells the others."""
        field = "" if piece.field == self._first_field else re.sub(r"[^A-Za-z0-9_]+", "-", piece.field)
        name = ".".join(part for part in (self._request.stem, field, piece.number) if part)
        return self._folder.images / (name + ending)

    def _file(self, piece: Piece, path: Path, sha256: str, shape: list[int], **more: Any) -> OutputFile:
        name = str(path.relative_to(self._folder.path))
        told = {"sha256": sha256, "field": piece.field, "kind": piece.kind.value, "shape": shape, **more}
        return OutputFile(file=name, **file_facts(path), **told)


def _frames(value: Any) -> Any:
    """The frames of a clip, as pictures or as an array (uint8 THWC); None where they are neither."""
    if isinstance(value, torch.Tensor):
        value = numbers(value.movedim(1, -1) if value.ndim == 4 else value)
    return eight_bit(value) if isinstance(value, np.ndarray) and value.ndim == 4 else _pictures_only(value)


def _pictures_only(value: Any) -> Any:
    is_pictures = not isinstance(value, np.ndarray) and all(one.mode[0] not in "IF" for one in value)
    return value if is_pictures else None


def _image(value: np.ndarray | torch.Tensor) -> Image.Image | None:
    """A picture of an array (HWC, or HW of bytes) or a tensor (CHW)."""
    array = numbers(value.movedim(0, -1) if isinstance(value, torch.Tensor) and value.ndim == 3 else value)
    array = eight_bit(array[..., None] if array.ndim == 2 else array)  # type: ignore[assignment]
    return None if array is None else Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)


def _array_of(value: Any) -> np.ndarray:
    """The numbers of a piece, however the pipeline gave them."""
    if isinstance(value, Image.Image):
        return np.asarray(value)
    if isinstance(value, list | tuple):
        return np.stack([np.asarray(frame) for frame in value])
    return numbers(value)
