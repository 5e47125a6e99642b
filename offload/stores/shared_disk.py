"""Weights on disk that the ranks of a group read together: each its part of a unit, which they then give each other."""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.distributed as dist

from offload.stores.disk import DiskStore
from offload.stores.packing import ALIGNMENT, Packing
from offload.stores.store import StoreError
from weights.agreement import Group, gather_int, rank_in, ranks_of, size_of


class SharedDiskStore:
    """A `Store` whose units the ranks of `readers` (gloo, used by nothing else) read from `disk` together.

    So a node reads one copy, however many ranks it has, and N disks, or N readers of one file system, are N times as
    fast. Every read is a collective: the ranks ask for the same units in the same order. What one of them cannot read
    raises StoreError on all of them.
    """

    rest: Literal["host", "disk"] = "disk"
    packings: Mapping[str, Packing]

    def __init__(self, disk: DiskStore, readers: Group) -> None:
        self.readers = readers
        self.packings = disk.packings
        self.bytes_read = 0  # by this rank
        self._disk = disk

    def view(self, unit: str) -> None:
        """None: what is on disk must be read."""
        return None

    def read(self, unit: str, out: torch.Tensor, start: int = 0) -> None:
        """As `DiskStore.read`, and a collective over `readers`."""
        parts = _parts(out, size_of(self.readers))
        mine = rank_in(self.readers)
        error: StoreError | None = None
        try:
            if parts[mine].numel():
                first = start + sum(part.numel() for part in parts[:mine])
                self._disk.read(unit, parts[mine], first)
                self.bytes_read += parts[mine].numel()
        except StoreError as own:  # the others wait for this part, and have to hear of it
            error = own
        well = gather_int(int(error is None), self.readers)
        failed = [rank for rank, is_well in zip(ranks_of(self.readers), well, strict=True) if not is_well]
        if failed:
            raise error or StoreError(f"{unit or 'what is outside the blocks'}: rank {failed[0]} cannot read its part")
        sent = [
            dist.broadcast(part, group=self.readers, group_src=rank, async_op=True)
            for rank, part in enumerate(parts)
            if part.numel()
        ]
        for work in sent:
            work.wait()

    def close(self) -> None:
        self._disk.close()


def _parts(out: torch.Tensor, number: int) -> list[torch.Tensor]:
    """The bytes in so many parts that are alike, the last ones shorter or empty; none cuts an element."""
    size = -(-out.numel() // (number * ALIGNMENT)) * ALIGNMENT
    return [out[min(part * size, out.numel()) : min((part + 1) * size, out.numel())] for part in range(number)]
