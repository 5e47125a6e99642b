"""FSDP over ranks for any component: shard it, load each rank's slice, prime it, read off what it is."""

from sharding.checkpoint import CheckpointError
from sharding.fsdp import bytes_per_rank, is_sharded, reshard, shard
from sharding.guard import OutsideRead
from sharding.inference_mode import is_primed, prime
from sharding.layout import Layout, fake_world, layout
from sharding.loading import KeysDiffer, LoadReport, load_sharded, set_dtype
from sharding.mesh import build_mesh
from sharding.verification import MixedModesUnsafe, verify_mixed_modes

__all__ = [
    "CheckpointError",
    "KeysDiffer",
    "Layout",
    "LoadReport",
    "MixedModesUnsafe",
    "OutsideRead",
    "build_mesh",
    "bytes_per_rank",
    "fake_world",
    "is_primed",
    "is_sharded",
    "layout",
    "load_sharded",
    "prime",
    "reshard",
    "set_dtype",
    "shard",
    "verify_mixed_modes",
]
