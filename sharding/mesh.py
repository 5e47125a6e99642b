"""The device mesh that weights are sharded and replicated over."""

from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

REPLICATE_AXIS = "replicate"
SHARD_AXIS = "shard"


def build_mesh(device_type: str, *, shard: int | None = None, replicate: int = 1) -> DeviceMesh:
    """The mesh of all ranks: `replicate` groups of `shard` ranks, each group holding the weights once.

    `shard=None` takes every rank that `replicate` leaves. With `replicate=1` the mesh is 1-D (FSDP), otherwise 2-D
    (HSDP); consecutive ranks share a group, so that all-gathers stay on a node where they can.

    Raises ValueError when the product is not the world size, and names a pair that fits.
    """
    world_size = dist.get_world_size()
    wanted = shard if shard is not None else max(1, world_size // max(1, replicate))
    if wanted < 1 or replicate < 1 or wanted * replicate != world_size:
        fit_shard, fit_replicate = _fitting_pair(world_size, wanted, replicate)
        raise ValueError(
            f"mesh shard={'all' if shard is None else shard} x replicate={replicate} does not make {world_size} ranks; "
            f"shard={fit_shard} and replicate={fit_replicate} would"
        )
    if replicate == 1:
        return mesh_of(device_type, {SHARD_AXIS: wanted})
    return mesh_of(device_type, {REPLICATE_AXIS: replicate, SHARD_AXIS: wanted})


def mesh_of(device_type: str, axes: Mapping[str, int]) -> DeviceMesh:
    """All ranks by the axes, the last one of neighbours. Collective.

    torch gives the group of each axis a timeout of its own, ten minutes on NCCL. Here it is the world's at least: what
    takes too long is the caller's to judge, and not for a group to end the process over.
    """
    mesh, world = init_device_mesh(device_type, tuple(axes.values()), mesh_dim_names=tuple(axes)), dist.group.WORLD
    assert world is not None
    for group in mesh.get_all_groups():
        for device in group._device_types:
            timeout, own = _timeout_of(world, device), _timeout_of(group, device)
            if timeout is not None and own is not None and timeout > own:
                group._get_backend(device)._set_default_timeout(timeout)
    return mesh


def _timeout_of(group: dist.ProcessGroup, device: torch.device) -> timedelta | None:
    """None for a backend that has none to tell (fake, other vendors')."""
    options = getattr(group._get_backend(device), "options", None)
    return getattr(options, "_timeout", None)


def _fitting_pair(world_size: int, shard: int, replicate: int) -> tuple[int, int]:
    """Keep the shard size if it divides the world (memory was planned for it), else the replicas, else shard all."""
    if shard >= 1 and world_size % shard == 0:
        return shard, world_size // shard
    if replicate >= 1 and world_size % replicate == 0:
        return world_size // replicate, replicate
    return world_size, 1
