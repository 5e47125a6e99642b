"""The arithmetic of a merge: weight = round(base + sum of weight_i * scale_i * up_i @ down_i), in fp32, rounded once.

[Note: one device] Host and device differ in the last bit, so a merge is computed on the device that computes the
picture, wherever the weights rest. Not on the host: a merge takes it 2 ns a parameter (one thread of this project's
test machine), which is 24 s for the 12G of a Flux, at each switch of a resident component and in each pass over one on
disk. A device does it in stream order, at the rate of its memory.

[Note: tiles] A rank that holds a slice computes only that slice, and must get the bits that the whole weight would have
there. A matrix product over a slice need not: libraries choose their kernels by shape and alignment. The product is
therefore always made in the same tiles of the whole weight, whatever slice is asked for, and the slice is cut from
them. It also bounds the memory: beside base and result there are never more than two tiles in fp32 (the sum and a
product), and the factors.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from lora.adapter import LowRank
from lora.edits import Terms

TILE = 2048
"""Rows and columns of a tile: 16 MiB of fp32. Offloaded components are merged in each pass, with five kernels a tile,
so there should be few: a Flux of 12G parameters has some 4,000, a quarter of what half the length would give."""


def write_merged(out: torch.Tensor, base: torch.Tensor, terms: Terms, origin: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """Fill `out` with `base` and the terms added, and return it.

    `base` is a weight, (out, in, *kernel), or a slice of one in its first two dims that begins at `origin`. Both must
    be on one device; `out` may be `base`. Without terms the bits are those of `base`.
    """
    if not terms or not base.numel():
        return out if out is base else out.copy_(base)
    kernel = base[0, 0].numel()
    rows = base.reshape(base.shape[0], -1)
    result = out.view(rows.shape) if out.is_contiguous() else torch.empty_like(rows)
    dtype = torch.promote_types(base.dtype, torch.float32)
    factors = [(_matrix(change.up, base, dtype), _matrix(change.down, base, dtype)) for change, _ in terms]
    scalings = [change.scaling(weight) for change, weight in terms]
    for y in _tiles(origin[0], rows.shape[0]):
        for x in _tiles(origin[1] * kernel, rows.shape[1]):
            total = rows[y.in_slice, x.in_slice].to(dtype, copy=True)
            for (up, down), scaling in zip(factors, scalings, strict=True):
                product = (up[y.tile] @ down[:, x.tile]).mul_(scaling)
                total += product[y.in_tile, x.in_tile]
            result[y.in_slice, x.in_slice] = total
    return out if out.is_contiguous() else out.copy_(result.view(base.shape))


def on_device(change: LowRank, device: torch.device) -> LowRank:
    """The same change with its factors on `device`."""
    return replace(change, down=change.down.to(device), up=change.up.to(device))


def _matrix(factor: torch.Tensor, base: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return factor.flatten(1).to(base.device, dtype)


class _Overlap(NamedTuple):
    """Where a tile meets a slice: the tile within the weight, and what they share within either."""

    tile: slice
    in_tile: slice
    in_slice: slice


def _tiles(start: int, length: int) -> Iterator[_Overlap]:
    """The tiles that [start, start + length) meets."""
    for tile in range(start // TILE * TILE, start + length, TILE):
        low, high = max(tile, start), min(tile + TILE, start + length)
        yield _Overlap(slice(tile, tile + TILE), slice(low - tile, high - tile), slice(low - start, high - start))
