"""What stands in a request's call for a file, and for an object of a type that the pipeline brings with it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any


class Form(Enum):
    """What the pipeline gets for a file."""

    picture = "picture"  # PIL.Image, as diffusers' load_image gives it
    frames = "frames"  # a list of PIL.Image, as diffusers' load_video gives it
    sound = "sound"  # tensor (1, channels, samples), float32
    array = "array"  # numpy.ndarray, as it is stored
    tensor = "tensor"  # torch.Tensor, as it is stored


@dataclass(frozen=True)
class InputFile:
    """A file that is read when its request is made, and known from its header before.

    `written` is the path as the user wrote it, `path` where that is. `shape` is what of it may decide the shapes inside
    a model: width, height, frames, channels. `tensor` is the name of one in a file of several; `mode` Pillow's, where a
    picture is wanted in another than RGB; without `batch`, sound is (channels, samples).
    """

    written: str
    path: Path
    form: Form
    sha256: str
    shape: tuple[Any, ...] = ()
    in_list: bool = False  # it stands in a list of one, where the argument takes only lists
    tensor: str = ""
    mode: str = ""
    batch: bool = True

    @property
    def described(self) -> dict[str, Any]:
        """What a manifest line says of it."""
        return {"file": self.written, "sha256": self.sha256, **self._chosen}

    @property
    def identity(self) -> dict[str, Any]:
        """What of it decides a request's bits: the content and what it is read as, whatever the file is called."""
        return {"sha256": self.sha256, "form": self.form.value, **self._chosen}

    @property
    def alike(self) -> list[Any]:
        """Equal for files that make the same shapes."""
        return [self.form.value, *self.shape, *self._chosen.items()]

    @property
    def _chosen(self) -> dict[str, Any]:
        chosen = {name: value for name, value in (("tensor", self.tensor), ("mode", self.mode)) if value}
        return chosen if self.batch else {**chosen, "batch": False}


@dataclass(frozen=True)
class Built:
    """An object of a type of the pipeline's own, such as a condition of a video, made when its request is."""

    type: type
    fields: Mapping[str, Any]


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same mappings, lists and objects, with each of their leaves changed."""
    if isinstance(value, Built):
        return Built(value.type, {name: mapped(item, change) for name, item in value.fields.items()})
    if isinstance(value, Mapping):
        return {name: mapped(item, change) for name, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    return change(value)


def described(value: Any) -> Any:
    """The value as the user wrote it, in plain words and numbers, and each file with the hash of its content."""
    return _plain(value, lambda file: file.described)


def identity(value: Any) -> Any:
    """What of the value decides a request's bits, in plain words and numbers."""
    return _plain(value, lambda file: file.identity)


def alike(value: Any) -> Any:
    """Equal for values that make the same shapes, in plain words and numbers."""
    return _plain(value, lambda file: file.alike)


def _plain(value: Any, told: Callable[[InputFile], Any]) -> Any:
    def leaf(value: Any) -> Any:
        if isinstance(value, InputFile):
            return told(value)
        return value.name if isinstance(value, Enum) else value

    def plain(value: Any) -> Any:
        if isinstance(value, Built):
            return {name: plain(item) for name, item in value.fields.items()}
        if isinstance(value, Mapping):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list) else leaf(value)

    return plain(value)


def files_in(value: Any) -> list[InputFile]:
    """Every file in a call, in order."""
    found: list[InputFile] = []
    mapped(value, lambda leaf: found.append(leaf) if isinstance(leaf, InputFile) else None)
    return found


def alike_text(call: Mapping[str, Any]) -> str:
    """`alike` as a key."""
    return json.dumps(alike(call), sort_keys=True, default=str)
