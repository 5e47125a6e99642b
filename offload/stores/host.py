"""Weights that rest in host memory, one copy a node: every local rank maps the same bytes."""

import mmap
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import accumulate
from typing import Literal, Self

import torch

from offload.stores.disk import DiskStore
from offload.stores.packing import Packing, pack, views
from offload.stores.shared_memory import SharedMemory
from offload.stores.store import StoreError, check_stretch
from weights.agreement import Group, on_all_ranks, on_first_rank, rank_in, size_of
from weights.room import require_room

_CPU = torch.device("cpu")


class HostStore:
    """A `Store` whose units lie in memory shared by the ranks of a node, read-only once it is filled.

    Made by `from_files` or `from_tensors`: collectives over `group`, the ranks of one node as `node_group` makes it
    (None: this process alone). An error on one rank is raised on all of them; NoRoom comes before any memory is taken.
    `device` is where the weights will be copied to: where it can, each rank page-locks the memory for it. Where it
    cannot, they are staged: `staging_bytes` is what the engines of these ranks take then, and room is asked for both.
    `component` is what error messages call it.
    """

    rest: Literal["host", "disk"] = "host"
    readers: Group = None
    packings: Mapping[str, Packing]

    def __init__(
        self, packings: Mapping[str, Packing], group: Group, device: torch.device, component: str, staging_bytes: int
    ) -> None:
        """Room for the units, not filled yet."""
        self.packings = packings
        # Whole pages each: what is page-locked in one call must not share a page with what is in another.
        self._sizes = [-(-packing.num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE for packing in packings.values()]
        self._starts = dict(zip(packings, accumulate(self._sizes, initial=0), strict=False))
        # What reading from disk would take: where host and device are one, a unit in use and one on its way.
        units_up = sum(sorted(self._sizes)[-2:]) if device.type == "cpu" else 0
        needed, elsewhere = sum(self._sizes) + staging_bytes, {"rest: disk": units_up + staging_bytes}
        on_first_rank(lambda: require_room(needed, f"{component} (rest: host)", elsewhere), group)
        self._memory: SharedMemory | None = SharedMemory(max(sum(self._sizes), 1), group)

    @classmethod
    def from_files(
        cls,
        open_files: Callable[[], DiskStore],
        *,
        group: Group = None,
        device: torch.device = _CPU,
        component: str = "the component",
        staging_bytes: int = 0,
    ) -> Self:
        """The weights of a DiskStore, which each rank opens; each reads its share of the bytes straight into place.

        What DiskStore raises (KeysDiffer, CheckpointError, StoreError), and NoRoom, are raised on every rank.
        """
        with ExitStack() as stack:
            files: DiskStore = on_all_ranks(lambda: _opened(open_files, stack), group)
            store = cls(files.packings, group, device, component, staging_bytes)
            share, num_shares = rank_in(group), size_of(group)
            store._fill(lambda: files.read_share(store.view, share, num_shares), group, device)
        return store

    @classmethod
    def from_tensors(
        cls,
        units: Mapping[str, Mapping[str, torch.Tensor]],
        load: Callable[[], Mapping[str, torch.Tensor]],
        *,
        group: Group = None,
        device: torch.device = _CPU,
        component: str = "the component",
        staging_bytes: int = 0,
    ) -> Self:
        """The weights of a live module, where only a library can make them of what the files hold.

        `units` as in DiskStore, on every rank. `load` is called on the group's first rank only, and returns the
        tensors by the module's names for them: each is copied, and converted to the dtype in `units`.
        """
        tensors = on_all_ranks(lambda: load() if rank_in(group) == 0 else {}, group)
        packings = {unit: pack(wanted) for unit, wanted in units.items()}
        store = cls(packings, group, device, component, staging_bytes)
        store._fill(lambda: store._copy(tensors), group, device)
        return store

    def view(self, unit: str) -> torch.Tensor:
        """The unit's packed bytes, uint8 (num_bytes,), shared by all ranks: a write to them kills the process."""
        if self._memory is None:
            raise StoreError(f"unit {unit!r} was asked for after the host store was closed")
        return self._memory.bytes.narrow(0, self._starts[unit], self.packings[unit].num_bytes)

    def read(self, unit: str, out: torch.Tensor, start: int = 0) -> None:
        """Fill `out`, uint8, with the unit's bytes from `start` on."""
        check_stretch(self.packings[unit], out, start)
        out.copy_(self.view(unit)[start : start + out.numel()])

    def close(self) -> None:
        """Let go of this rank's mapping, which stays until its last view is gone. Idempotent."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _fill(self, step: Callable[[], None], group: Group, device: torch.device) -> None:
        memory = self._memory
        assert memory is not None
        try:
            on_all_ranks(step, group)
            on_all_ranks(lambda: memory.page_lock(device, self._sizes), group)  # which takes writable pages
            on_all_ranks(memory.protect, group)
        except BaseException:  # also Ctrl-C: nobody has this store yet who could close it
            self.close()
            raise

    def _copy(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Nothing on the ranks that have no tensors."""
        if not tensors:
            return
        for unit, packing in self.packings.items():
            for name, target in views(packing, self.view(unit)).items():
                assert tensors[name].shape == target.shape, f"{name} is {tensors[name].shape}, not {target.shape}"
                target.copy_(tensors[name].detach())


def _opened(open_files: Callable[[], DiskStore], stack: ExitStack) -> DiskStore:
    files = open_files()
    stack.callback(files.close)
    return files
