"""FSDP over ranks for any component: shard it, load each rank's slice, prime it, read off what it is."""

from sharding.fsdp import reshard, shard, unshard
from sharding.gathers import observe_gathers
from sharding.layout import Layout, fake_world, layout
from sharding.loading import LoadReport, load_sharded, set_dtype
from sharding.mesh import build_mesh, mesh_of
from sharding.priming import is_primed, prime
from sharding.recovery import OutsideRead
from sharding.shared_pass import keep, let_go, moving_blocks, resume_forward, without_prefetch
from sharding.state import Sharding, bytes_per_rank, is_sharded, sharding_of
from sharding.verification import MixedModesUnsafe, verify_mixed_modes
from weights.checkpoint import CheckpointError, KeysDiffer

__all__ = [
    "CheckpointError",
    "KeysDiffer",
    "Layout",
    "LoadReport",
    "MixedModesUnsafe",
    "OutsideRead",
    "Sharding",
    "build_mesh",
    "bytes_per_rank",
    "fake_world",
    "is_primed",
    "is_sharded",
    "keep",
    "layout",
    "let_go",
    "load_sharded",
    "mesh_of",
    "moving_blocks",
    "observe_gathers",
    "prime",
    "reshard",
    "resume_forward",
    "set_dtype",
    "shard",
    "sharding_of",
    "unshard",
    "verify_mixed_modes",
    "without_prefetch",
]
