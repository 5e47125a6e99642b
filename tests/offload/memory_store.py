"""A store in ordinary memory, made from a module with real weights; it can fail, and tells who read what."""

import threading
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from offload import StoreError, plan_units
from offload.stores.packing import Packing, pack, views
from offload.stores.store import check_stretch
from offload.units import ENTRY_POINTS
from weights.agreement import Group


class MemoryStore:
    """`views=False` makes the offloader read, as from files. Units in `broken` cannot be read, from `breaks_at` on."""

    readers: Group = None

    def __init__(self, module: nn.Module, *, views: bool = True, entry_points: Iterable[str] = ENTRY_POINTS) -> None:
        self.plan = plan_units(module, entry_points)
        self.packings: Mapping[str, Packing] = {unit: pack(tensors) for unit, tensors in self.plan.items()}
        self.bytes = {unit: packed_bytes(self.packings[unit], tensors) for unit, tensors in self.plan.items()}
        self.has_views = views
        self.broken: set[str] = set()
        self.breaks_at = 0
        self.reads: list[str] = []
        self.may_read = threading.Event()
        self.may_read.set()

    def view(self, unit: str) -> torch.Tensor | None:
        return self.bytes[unit] if self.has_views else None

    def read(self, unit: str, out: torch.Tensor, start: int = 0) -> None:
        assert not out.is_inference() and not torch.is_inference_mode_enabled()
        assert self.may_read.wait(timeout=10)
        self.reads.append(unit)
        if unit in self.broken and start >= self.breaks_at:
            raise StoreError(f"model.safetensors: {next(iter(self.plan[unit]))} cannot be read: I/O error")
        check_stretch(self.packings[unit], out, start)
        out.copy_(self.bytes[unit][start : start + out.numel()])

    def close(self) -> None:
        pass


def packed_bytes(packing: Packing, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    buffer = torch.zeros(packing.num_bytes, dtype=torch.uint8)
    for name, view in views(packing, buffer).items():
        view.copy_(tensors[name].detach())
    return buffer
