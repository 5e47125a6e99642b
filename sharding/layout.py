"""What sharding over many ranks would cost each of them, worked out in one process without weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from sharding.state import bytes_per_rank


@dataclass(frozen=True)
class Layout:
    """Bytes a rank, of a sharded module whose weights are not gathered.

    `at_rest`: what the rank holds between calls. `outside_blocks` and `largest_block`: what gathering the root's own
    weights and one block adds; while a call runs, `outside_blocks + (2 + prefetch) * largest_block` at the most.
    """

    at_rest: int
    outside_blocks: int
    largest_block: int


@contextmanager
def fake_world(world_size: int, rank: int = 0) -> Iterator[None]:
    """Be one rank of a world that does not exist: meshes and `shard` work, communication yields nothing of use."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the "fake" backend, so only here

    if dist.is_initialized():
        raise ValueError("a process group exists already; lay out in a process without one")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def layout(module: nn.Module) -> Layout:
    """Read off a module that `shard` returned, with meta or real weights. Rank 0 has the largest share."""
    blocks = [
        _gathered_bytes(inner) for inner in module.modules() if isinstance(inner, FSDPModule) and inner is not module
    ]
    return Layout(bytes_per_rank(module), _gathered_bytes(module), max(blocks, default=0))


def _gathered_bytes(unit: nn.Module) -> int:
    """Bytes that gathering one FSDP unit makes, the units within it left out."""
    pending: list[nn.Module] = [unit]
    parameters: dict[int, torch.Tensor] = {}
    while pending:
        inner = pending.pop()
        parameters |= {id(p): p for p in inner.parameters(recurse=False) if isinstance(p, DTensor)}
        pending += [child for child in inner.children() if not isinstance(child, FSDPModule)]
    return sum(p.numel() * p.element_size() for p in parameters.values())
