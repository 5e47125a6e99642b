"""What a component's weights are, in bytes: read off its skeleton once, so that any placement on any number of ranks is
arithmetic."""

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

import offload
from offload.offloaded import kept_buffers
from offload.stores.packing import ALIGNMENT, pack
from offload.units import BUFFERS
from runner.components.component import METHODS, Component
from weights.blocks import find_units
from weights.tied import find_weights


@dataclass(frozen=True)
class Rows:
    """Weights that FSDP cuts along their first dim: of each, how many rows, and the bytes of one."""

    tensors: tuple[tuple[int, int], ...]

    @property
    def whole(self) -> int:
        return sum(rows * row for rows, row in self.tensors)

    @property
    def largest(self) -> int:
        return max((rows * row for rows, row in self.tensors), default=0)

    def slice(self, ranks: int) -> int:
        """Of one rank: FSDP pads each slice to that of the first rank."""
        return sum(-(-rows // ranks) * row for rows, row in self.tensors)

    def gathered(self, ranks: int) -> int:
        """The slices of all ranks, with what they are padded by."""
        return ranks * self.slice(ranks)


@dataclass(frozen=True)
class Sizes:
    """Bytes of one component.

    `resident`: each weight in memory of its own, as `fill` makes it. `blocks`, `outside` and `buffers`: the units that
    the offload moves, each packed into one buffer; `kept`: buffers that are in no unit. `sliced` and `root`: the blocks
    and the rest as FSDP shards them; `unsliced`: scalars and buffers, which it leaves alone. `stored`: of the files.
    """

    name: str
    kind: str
    stage: str
    dtype: str
    parameters: int
    resident: int
    blocks: tuple[int, ...]
    outside: int
    buffers: int
    kept: int
    sliced: tuple[Rows, ...]
    root: Rows
    unsliced: int
    stored: int

    @cached_property
    def in_store(self) -> int:
        """In whole pages for each unit, as a node's host store lays them out."""
        units = [*self.blocks, self.outside, self.buffers]
        return sum(-(-unit // mmap.PAGESIZE) * mmap.PAGESIZE for unit in units)


def sizes_of(component: Component, stored: int = 0) -> Sizes:
    """Of a component whose parameters may be on meta, and have the dtypes that they will have."""
    module = component.module
    units = {name: pack(tensors).num_bytes for name, tensors in offload.plan_units(module, _ENTRY_POINTS).items()}
    outside, buffers = units.pop(offload.OUTSIDE), units.pop(BUFFERS, 0)
    sliced, root, scalars = _sliced(module)
    weights = [weight.tensor for weight in find_weights(module)]
    kept = sum(tensor.nbytes for tensor in kept_buffers(module))
    return Sizes(
        name=component.name,
        kind=type(module).__name__,
        stage=component.stage,
        dtype=_dtype(module),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        resident=sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in weights) + kept,
        blocks=tuple(units.values()),
        outside=outside,
        buffers=buffers,
        kept=kept,
        sliced=sliced,
        root=root,
        unsliced=scalars + _bytes(module.buffers()),
        stored=stored or sum(tensor.nbytes for tensor in weights),
    )


_ENTRY_POINTS = ("forward", *METHODS)


def _sliced(module: nn.Module) -> tuple[tuple[Rows, ...], Rows, int]:
    """The parameters of each block, those of the root, and the bytes of scalars, which have no dim to cut."""
    methods = [name for name in _ENTRY_POINTS if callable(getattr(module, name, None))]
    seen: set[int] = set()
    blocks = [_new(block.parameters(), seen) for block in find_units(module, methods).blocks.values()]
    root = _new(module.parameters(), seen)
    rows = [Rows(tuple((t.shape[0], t.nbytes // t.shape[0]) for t in unit if t.ndim and t.nbytes)) for unit in blocks]
    scalars = _bytes(t for t in module.parameters() if not t.ndim)
    return tuple(rows), Rows(tuple((t.shape[0], t.nbytes // t.shape[0]) for t in root if t.ndim and t.nbytes)), scalars


def _new(tensors: Iterable[torch.Tensor], seen: set[int]) -> list[torch.Tensor]:
    """Those that no unit before has: a tied weight is the first one's."""
    found = [tensor for tensor in tensors if id(tensor) not in seen]
    seen.update(map(id, found))
    return found


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def _dtype(module: nn.Module) -> str:
    """Of most of its weights."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return str(max(sizes, key=lambda dtype: sizes[dtype], default=torch.get_default_dtype())).removeprefix("torch.")
