"""One component in every placement, and the weights that it computes with."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from runner.components.groups import Groups
from runner.components.load import Loading, load_component
from runner.components.source import Source
from runner.config import PlacementConfig, Rest, Share
from runner.world import World

PLACEMENTS = {
    "resident": PlacementConfig(),
    "sharded": PlacementConfig(share=Share.shard),
    "host": PlacementConfig(rest=Rest.host),
    "disk": PlacementConfig(rest=Rest.disk),
}
OFFLOADED = [name for name, placement in PLACEMENTS.items() if placement.rest is not Rest.device]


def place(
    cls: Any, path: Path, placement: str, mesh: DeviceMesh | None = None, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, Loading]:
    """In a world of one; `mesh` for what is sharded."""
    world = World(0, 1, torch.device("cpu"))
    return load_component(Source(path.name, cls, path), dtype, PLACEMENTS[placement], world, Groups(mesh))


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """By all names, whole."""
    return {key: t.full_tensor() if isinstance(t, DTensor) else t for key, t in module.state_dict().items()}
