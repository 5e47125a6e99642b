"""The file of an adapter: found, read whole as safetensors with the settings that belong to it, or refused."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from lora.adapter import LONGEST_NAME, AdapterError, few, first_line

Tensors = dict[str, torch.Tensor]

PEFT_PREFIX = "base_model.model."
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NEVER_READ = "a pickle can run code when it is read; convert it to safetensors"
# What lies where a file should be, by its first bytes.
_NO_FILE = (
    (re.compile(rb"\Z"), "it is empty (0 bytes); download it again"),
    (
        re.compile(rb"version https://git-lfs"),
        "it is the pointer of a file in Git LFS, not the file; run `git lfs pull` where it came from",
    ),
    (re.compile(rb"\s*<(!doctype|html)", re.IGNORECASE), "it is a web page (HTML); download the file that it shows"),
    (re.compile(rb"PK\x03\x04|\x80[\x02-\x05]"), _NEVER_READ),
)
_MOST_DIMS = 5  # of a factor: a convolution's in three dimensions
_FACTOR_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def weights_file(path: Path) -> Path:
    """The file that a path means: itself, or the only one in a folder. Raises AdapterError."""
    try:
        file = _only_file(path) if path.is_dir() else path
        if file.suffix in _PICKLES:
            raise AdapterError(file, [_NEVER_READ])
        if file.is_dir():
            raise AdapterError(file, ["it is a folder, not a file"])
        if file.is_symlink() and not file.exists():
            raise AdapterError(file, [f"it is a link to {os.readlink(file)}, which is not there; give the file itself"])
        if not file.is_file():
            raise AdapterError(file, ["it is no file" if file.exists() else "no such file or folder"])
    except OSError as error:  # a folder that may not be entered, a path that is too long
        raise AdapterError(path, [f"not readable ({error.strerror})"]) from error
    return file


def _only_file(folder: Path) -> Path:
    for name in (LORA_WEIGHT_NAME_SAFE, SAFETENSORS_WEIGHTS_NAME):
        if (folder / name).is_file():
            return folder / name
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise AdapterError(folder, [f"it holds several files, name one: {few([f.name for f in files])}"])
    if pickles := sorted(f.name for f in folder.iterdir() if f.suffix in _PICKLES):
        raise AdapterError(folder, [f"{few(pickles)}: {_NEVER_READ}"])
    raise AdapterError(folder, ["it is a folder that holds no .safetensors file"])


def load(file: Path) -> tuple[Tensors, dict[str, Any]]:
    """Every tensor in memory of its own, and the adapter's settings. Raises AdapterError."""
    tensors, config = _read(file, tensors=True)
    return tensors, config


def identity(file: Path) -> str:
    """Hashes all bytes of the file, and the settings, which may lie in another file. Raises AdapterError."""
    _, config = _read(file, tensors=False)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 24):
                digest.update(chunk)
    except OSError as error:
        raise AdapterError(file, [f"not readable ({error.strerror})"]) from error
    return digest.hexdigest()


def _read(file: Path, *, tensors: bool) -> tuple[Tensors, dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as handle:
            keys = handle.keys()
            metadata = handle.metadata() or {}
            found = {key: handle.get_tensor(key).clone() for key in keys} if tensors else {}
    # TypeError and RuntimeError are torch's, for shapes and dtypes that a header may state and a tensor cannot have.
    except (OSError, SafetensorError, TypeError, ValueError, RuntimeError) as error:
        raise AdapterError(file, [_why_unreadable(file, error)]) from error
    return found, _settings(file, keys, metadata)


def _why_unreadable(file: Path, error: BaseException) -> str:
    try:
        with file.open("rb") as stream:
            head = stream.read(256)
    except OSError as unreadable:
        return f"not readable ({unreadable.strerror}); check its permissions"
    for pattern, what in _NO_FILE:
        if pattern.match(head):
            return what
    return f"it is no safetensors file, or was cut short; download it again ({first_line(error)})"


def _settings(file: Path, keys: Iterable[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """diffusers' metadata, else the file that peft writes beside one of its own; diffusers does not read that one."""
    text: str | None = metadata.get(LORA_ADAPTER_METADATA_KEY)
    where = "its settings"
    try:
        beside = file.with_name(CONFIG_NAME)
        is_pefts = file.name == SAFETENSORS_WEIGHTS_NAME or any(key.startswith(PEFT_PREFIX) for key in keys)
        if text is None and is_pefts and beside.is_file():
            where = f"its settings in {CONFIG_NAME}"
            text = beside.read_text("utf-8")
        config = json.loads(text) if text else {}
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(file, [f"{where} are not JSON in UTF-8 ({first_line(error)})"]) from error
    if not isinstance(config, dict):
        raise AdapterError(file, [f"{where} are {type(config).__name__}, not an object of names and values"])
    return config


def odd_tensors(tensors: Tensors) -> list[str]:
    """A line for each kind of tensor that nothing can be computed from; named as in the file."""
    problems: list[str] = []
    if not tensors:
        return ["it holds no tensors"]
    # Patterns are searched in every other key.
    if long := [key for key in tensors if len(key) > LONGEST_NAME]:
        return [f"{len(long)} names are longer than {LONGEST_NAME} characters: {few(long, 1)}"]
    if deep := [key for key, tensor in tensors.items() if tensor.ndim > _MOST_DIMS]:  # torch cannot even print some
        return [f"{len(deep)} have more than {_MOST_DIMS} dimensions: {few(deep)}"]
    for key, tensor in tensors.items():
        if is_alpha(key) and not _is_finite_number(tensor):
            problems.append(f"{key} is {_shown(tensor)}, not a finite number")
    of_dtype: dict[torch.dtype, list[str]] = {}
    for key, tensor in tensors.items():
        if not is_alpha(key) and tensor.dtype not in _FACTOR_DTYPES:
            of_dtype.setdefault(tensor.dtype, []).append(key)
    for dtype, keys in of_dtype.items():
        problems.append(f"{len(keys)} are {_named(dtype)}, not floats of 16 bits or more; convert them: {few(keys)}")
    return problems


def is_alpha(key: str) -> bool:
    return key == "alpha" or key.endswith(".alpha")


def _is_finite_number(tensor: torch.Tensor) -> bool:
    if tensor.numel() != 1 or tensor.is_complex() or tensor.dtype is torch.bool:
        return False
    if tensor.is_floating_point() and tensor.dtype not in _FACTOR_DTYPES:
        return False
    return math.isfinite(tensor.item())


def _shown(tensor: torch.Tensor) -> str:
    is_number = tensor.numel() == 1 and tensor.dtype in _FACTOR_DTYPES
    return str(tensor.item()) if is_number else f"{_named(tensor.dtype)} of shape {list(tensor.shape)}"


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
