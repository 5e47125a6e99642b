"""How the tensors of one unit (a block, or all that is outside the blocks) lie side by side in one buffer of bytes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

# The allocators' own alignment: kernels pick their instructions by it, which moves the last bit.
ALIGNMENT = 512


@dataclass(frozen=True)
class PackedTensor:
    """One tensor: `offset` bytes into the unit's buffer, strides in elements as the module had them."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Packing:
    """The tensors of a unit by name, and the size of the buffer that holds them all, in bytes."""

    tensors: Mapping[str, PackedTensor]
    num_bytes: int


def pack(tensors: Mapping[str, torch.Tensor]) -> Packing:
    """Lay tensors (real or meta) out one after the other, each aligned; permuted ones keep their strides."""
    packed, end = {}, 0
    for name, tensor in tensors.items():
        stride = tensor.stride() if _is_dense(tensor) else _contiguous_stride(tensor.shape)
        packed[name] = PackedTensor(tuple(tensor.shape), stride, tensor.dtype, end)
        end += -(-packed[name].num_bytes // ALIGNMENT) * ALIGNMENT
    return Packing(packed, end)


def views(packing: Packing, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of the unit as views of `buffer`, uint8 of at least `packing.num_bytes` elements."""
    typed: dict[torch.dtype, torch.Tensor] = {}  # one per dtype: blocks are bound again and again
    found = {}
    for name, tensor in packing.tensors.items():
        if tensor.dtype not in typed:
            typed[tensor.dtype] = buffer[: packing.num_bytes].view(tensor.dtype)
        base = typed[tensor.dtype]
        start = base.storage_offset() + tensor.offset // tensor.dtype.itemsize
        found[name] = base.as_strided(tensor.shape, tensor.stride, start)
    return found


def view(tensor: PackedTensor, buffer: torch.Tensor) -> torch.Tensor:
    flat = buffer[tensor.offset : tensor.offset + tensor.num_bytes].view(tensor.dtype)
    return flat.as_strided(tensor.shape, tensor.stride)


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill a contiguous stretch in some order of the dims."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _contiguous_stride(shape: torch.Size) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
