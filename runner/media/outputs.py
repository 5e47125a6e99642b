"""What a pipeline's call gave, told apart field by field.

A field's name says what its numbers are, where its type does not: a list of lists of pictures is a clip in `frames` and
the layers of a picture in `images`; a tensor of three axes may be either, or sound. A field that is known by neither
is kept as the array or the plain value that it is, and what is none of these is named with the reason.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch
from PIL import Image

from runner.errors import UserError

# Of diffusers' output classes, and of what its modular pipelines give.
PICTURES = ("images", "image")
CLIPS = ("frames", "video", "videos")
SOUNDS = ("audio", "audios", "sound")


class Kind(Enum):
    """What a piece is: one picture, one clip (its frames), one sound, an array, or the latents of a request."""

    picture = "picture"
    clip = "clip"
    sound = "sound"
    array = "array"
    latents = "latents"


@dataclass(frozen=True)
class Piece:
    """One thing to write. `number`: its place among those of its field, from 1; empty where it is the only one.

    `value`: of a picture a PIL image or an array (HWC); of a clip a sequence of PIL images, an array (THWC) or a tensor
    (TCHW); of a sound an array (channels, samples); of latents the tensors by name.
    """

    field: str
    kind: Kind
    value: Any
    number: str = ""


@dataclass(frozen=True)
class Outputs:
    """All that a call gave. `values` are those that JSON knows; `left_out` says why for each field that is not kept."""

    pieces: Sequence[Piece]
    values: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


def fields_of(output: Any) -> dict[str, Any]:
    """The fields of an output class, a mapping, a tuple (numbered) or a bare value, but for those that are None."""
    if dataclasses.is_dataclass(output):
        named = {one.name: getattr(output, one.name) for one in dataclasses.fields(output)}
    elif isinstance(output, Mapping):
        named = {str(name): value for name, value in output.items()}
    elif isinstance(output, tuple):
        named = {str(index): value for index, value in enumerate(output)}
    else:
        named = {"output": output}
    return {name: value for name, value in named.items() if value is not None}


def told_apart(output: Any, *, as_latents: bool = False) -> Outputs:
    """Each field of a call's output as pieces, as a value, or as left out. `as_latents`: the call was asked for them,
    so that all its tensors are one piece, whole and with their batch axis, as a call takes them back."""
    pieces: list[Piece] = []
    values: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    latents: dict[str, torch.Tensor] = {}
    for name, value in fields_of(output).items():
        if as_latents and (tensors := _tensors(name, value)):
            latents |= tensors
        elif (found := _pieces(name, value)) is not None:
            width = len(str(len(found)))
            numbers = [f"{index:0{width}d}" for index in range(1, len(found) + 1)] if len(found) > 1 else [""]
            pieces += [Piece(name, kind, one, number) for (kind, one), number in zip(found, numbers, strict=True)]
        else:
            try:
                values[name] = _plain(value)
            except TypeError as error:
                left_out[name] = str(error)
    if latents:
        pieces.insert(0, Piece(next(iter(latents)), Kind.latents, latents))
    elif as_latents:
        raise UserError(f"job.format=latent: a {type(output).__name__} came back without a tensor; use auto or npy")
    return Outputs(pieces, values, left_out)


def numbers(value: np.ndarray | torch.Tensor) -> np.ndarray:
    """A tensor's numbers on the host, bit for bit; numpy has no bfloat16, whose values float32 holds exactly."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    return np.ascontiguousarray(value)


def is_array(value: Any) -> bool:
    """Whether it is numbers: an array of objects or text is none."""
    return isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc")


def _pieces(name: str, value: Any) -> list[tuple[Kind, Any]] | None:
    """The pieces of a field that holds pictures or numbers; None where it holds neither."""
    if not _holds(value):
        return None
    if name in CLIPS:
        return [(Kind.clip, clip) for clip in _clips(value)]
    if name in SOUNDS:
        return [(Kind.sound, sound) for sound in _sounds(value)]
    if name in PICTURES:
        return [(Kind.picture, picture) for picture in _pictures(value)]
    return [(Kind.picture if isinstance(one, Image.Image) else Kind.array, one) for one in _flat(value)]


def _holds(value: Any) -> bool:
    """Whether it is a picture or an array, or a nested list of nothing else."""
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(map(_holds, value))
    return isinstance(value, Image.Image) or is_array(value)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _flat(one)
    else:
        yield value


def _pictures(value: Any) -> Iterator[Any]:
    """Of pictures in lists, and of arrays of pictures, each: (..., H, W, C)."""
    for one in _flat(value):
        if not isinstance(one, Image.Image) and one.ndim > 3:
            for inner in one:
                yield from _pictures(inner)
        else:
            yield one


def _clips(value: Any) -> Iterator[Any]:
    """Of a batch of clips, or of one that comes without its batch axis, each."""
    if isinstance(value, list | tuple):
        if not isinstance(value[0], list | tuple) and (isinstance(value[0], Image.Image) or value[0].ndim <= 3):
            yield value if isinstance(value[0], Image.Image) else _stacked(value)
        else:
            for one in value:
                yield from _clips(one)
    elif not isinstance(value, Image.Image) and value.ndim > 4:
        for one in value:
            yield from _clips(one)
    else:
        yield [value] if isinstance(value, Image.Image) else value


def _stacked(frames: Sequence[Any]) -> Any:
    return torch.stack(list(frames)) if isinstance(frames[0], torch.Tensor) else np.stack(frames)


def _sounds(value: Any) -> Iterator[np.ndarray]:
    """Of a batch of waveforms, each as (channels, samples). A batch is of one request, so two axes are channels and
    samples, or one waveform in its batch, which is the same."""
    for one in _flat(value):
        if isinstance(one, Image.Image):
            raise UserError("a picture came back as sound; this output class is not known to the runner")
        if one.ndim > 2:
            for inner in one:
                yield from _sounds(inner)
        else:
            yield np.atleast_2d(numbers(one))


def _tensors(name: str, value: Any) -> dict[str, torch.Tensor]:
    """The tensors of a field by name, numbered in a list; none where it holds anything else."""
    if isinstance(value, list | tuple):
        inner = [_tensors(f"{name}.{index}", one) for index, one in enumerate(value)]
        return {key: tensor for one in inner for key, tensor in one.items()} if all(inner) else {}
    if not is_array(value):
        return {}
    return {name: value if isinstance(value, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(value))}


def _plain(value: Any) -> Any:
    """The value as JSON has it. Raises TypeError with the reason where it does not."""
    try:
        text = json.dumps(value, default=_number, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"a {type(value).__name__}, which has no file format here ({error})") from error
    return json.loads(text)


def _number(value: Any) -> Any:
    """A number of numpy's, or a tensor of one."""
    if isinstance(value, np.generic):
        return value.item()
    if is_array(value):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
