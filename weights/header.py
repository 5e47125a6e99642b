"""The header of a safetensors file: which tensor lies where. Checked before anything trusts its numbers.

The file begins with the length of its header (8 bytes, little endian), then the header (JSON), then the tensors, side
by side: https://huggingface.co/docs/safetensors.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from weights.files import LFS_POINTER, FileError, why_unreadable

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # safetensors refuses longer ones


class CheckpointError(FileError):
    """The stored weights cannot fill the module: says which file or tensor, and why."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its elements lie contiguous, row by row, from the file's byte `offset` on."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: Path) -> bytes:
    """The length and the header, as they are in the file. Raises CheckpointError for what is no safetensors file.

    What is there is looked at before as much memory is taken as a damaged length asks for.
    """
    try:
        with file.open("rb") as raw:
            size = raw.seek(0, 2)
            raw.seek(0)
            start = raw.read(_LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            if len(start) < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
                raise CheckpointError(_what_else(file, start + raw.read(64), size))
            return start + raw.read(length)
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(why_unreadable(file, error)) from error


def stored_tensors(file: Path) -> Iterator[StoredTensor]:
    """Every tensor of a file. Raises CheckpointError."""
    header = read_header(file)
    try:
        with safe_open(file, framework="pt"):  # checks every entry against the others and the file's size
            pass
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is damaged or cut short ({error}); copy it again") from error
    for key, entry in json.loads(header[_LENGTH_BYTES:]).items():
        if key != "__metadata__":
            offset = len(header) + entry["data_offsets"][0]
            yield StoredTensor(file, key, tuple(entry["shape"]), _dtype(file, key, entry["dtype"]), offset)


def stored_alike(one: StoredTensor, other: StoredTensor, chunk_bytes: int = 16 * 2**20) -> bool:
    """Whether two tensors are stored with the same bits. Reads both, up to the first difference."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    try:
        with one.file.open("rb") as first, other.file.open("rb") as second:
            first.seek(one.offset)
            second.seek(other.offset)
            sizes = (min(chunk_bytes, one.num_bytes - start) for start in range(0, one.num_bytes, chunk_bytes))
            return all(first.read(size) == second.read(size) for size in sizes)
    except OSError as error:
        raise CheckpointError(why_unreadable(one.file, error)) from error


def _what_else(file: Path, start: bytes, size: int) -> str:
    """Why a file cannot be safetensors, as far as its first bytes tell."""
    if size == 0:
        return f"{file} is empty: the download or copy was cut off; copy it again"
    if start.startswith(LFS_POINTER):
        return f"{file} is a git-LFS pointer, not the weights: run `git lfs pull` in its folder"
    if start.lstrip().startswith(b"<"):
        return f"{file} is a web page, not the weights: download the file itself"
    if start.startswith(b"PK\x03\x04"):
        return f"{file} is a pickle, which can run code when read; convert it with save_pretrained"
    return f"{file} is damaged or cut short (it has {size} bytes, and no safetensors header); copy it again"


def _dtype(file: Path, key: str, name: str) -> torch.dtype:
    """The table of safetensors' format: https://huggingface.co/docs/safetensors/metadata_parsing."""
    name_in_torch = {
        "BOOL": "bool",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2": "float8_e5m2",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "BF16": "bfloat16",
        "C64": "complex64",
    }.get(name, name.replace("F", "float").replace("U", "uint").replace("I", "int"))
    dtype = getattr(torch, name_in_torch, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{file} stores {key} as {name}, a dtype that torch does not have")
    return dtype
