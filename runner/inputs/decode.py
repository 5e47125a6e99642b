"""Files become what the pipeline gets, when their request is made: as diffusers' load_image and load_video read."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from diffusers.utils import load_image, load_video
from PIL import Image
from safetensors import safe_open

from runner.inputs.checked import sha256_of
from runner.inputs.input_file import Built, Form, InputFile
from weights.modes import normal_mode


class InputLost(RuntimeError):
    """A file that was read when the job began is not there any more, or is another one."""


def decoded(call: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The arguments with every file read and every object built; tensors on `device`, in their own type.

    In normal mode: a library gives its pipelines tensors of its own, which are no inference tensors. Raises InputLost.
    """
    with normal_mode():
        return {name: _decoded(value, device) for name, value in call.items()}


def _decoded(value: Any, device: torch.device) -> Any:
    if isinstance(value, InputFile):
        return [_read(value, device)] if value.in_list else _read(value, device)
    if isinstance(value, Built):
        return value.type(**{name: _decoded(item, device) for name, item in value.fields.items()})
    if isinstance(value, Mapping):
        return {name: _decoded(item, device) for name, item in value.items()}
    if isinstance(value, list):
        return [_decoded(item, device) for item in value]
    return value


def _read(file: InputFile, device: torch.device) -> Any:
    try:
        if file.form is Form.picture:
            return _picture(_content(file), file.mode)
        if file.form is Form.frames:
            _check_same(file, sha256_of(file.path))
            return load_video(str(file.path))
        if file.form is Form.tensor and file.tensor:
            _check_same(file, sha256_of(file.path))
            with safe_open(file.path, "pt") as tensors:
                # Of its own memory: the file's may begin at any offset, which decides the last bit.
                return tensors.get_tensor(file.tensor).clone().to(device)
        content = _content(file)
    except OSError as error:
        raise InputLost(f"{file.written}: cannot be read any more ({error.strerror or error})") from error
    if file.form is Form.sound:
        samples, _ = soundfile.read(content, dtype="float32", always_2d=True)  # (samples, channels)
        sound = torch.from_numpy(np.ascontiguousarray(samples.T)).to(device)
        return sound[None] if file.batch else sound
    array = np.load(content, allow_pickle=False)
    return array if file.form is Form.array else torch.from_numpy(array).to(device)


def _picture(content: io.BytesIO, mode: str) -> Image.Image:
    return load_image(Image.open(content), (lambda picture: picture.convert(mode)) if mode else None)


def _content(file: InputFile) -> io.BytesIO:
    content = Path(file.path).read_bytes()
    _check_same(file, hashlib.sha256(content).hexdigest())
    return io.BytesIO(content)


def _check_same(file: InputFile, sha256: str) -> None:
    """A request's id is a hash of what it was read from: what has changed since is another request."""
    if sha256 != file.sha256:
        raise InputLost(f"{file.written}: has changed since the job began; start it again to use the new one")
