"""The device mesh that weights are sharded and replicated over."""

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
        return init_device_mesh(device_type, (wanted,), mesh_dim_names=(SHARD_AXIS,))
    return init_device_mesh(device_type, (replicate, wanted), mesh_dim_names=(REPLICATE_AXIS, SHARD_AXIS))


def _fitting_pair(world_size: int, shard: int, replicate: int) -> tuple[int, int]:
    """Keep the shard size if it divides the world (memory was planned for it), else the replicas, else shard all."""
    if shard >= 1 and world_size % shard == 0:
        return shard, world_size // shard
    if replicate >= 1 and world_size % replicate == 0:
        return world_size // replicate, replicate
    return world_size, 1
