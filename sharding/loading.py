"""Fill a sharded module from its safetensors files, each rank reading only its own slices."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from weights.agreement import Group, on_all_ranks
from weights.checkpoint import Checkpoint, CheckpointError, StoredTensor, few, match_keys, refuse_unfit
from weights.modes import refuse_inference_mode
from weights.tied import Weight, find_weights


@dataclass(frozen=True)
class LoadReport:
    """What this rank did: `tensors` filled, `bytes_read` of slices as stored, wall-clock `seconds`."""

    tensors: int
    bytes_read: int
    seconds: float


def set_dtype(module: nn.Module, dtype_of: Callable[[str], torch.dtype]) -> None:
    """Give each floating-point parameter and persistent buffer the dtype that `dtype_of(name)` says.

    For a module with meta parameters, before `shard`: `load_sharded` converts what it reads to these dtypes.
    """
    refuse_inference_mode("set dtypes")
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype_of(name))


def load_sharded(
    module: nn.Module,
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    offload_to_host: bool = False,
    group: Group = None,
) -> LoadReport:
    """Fill a module with meta parameters, sharded by `shard`, from the safetensors files of a component's directory.

    Each rank reads its slices of the sharded parameters, to `device` (to the host where `shard` was called with
    `offload_to_host`), and the rest whole, to `device`. Every tensor is copied into memory of its own and converted to
    the dtype the module declares; no view of a mapped file is kept. Persistent buffers are read too; other buffers keep
    what the module's constructor gave them.

    A collective over `group` (gloo; the world by default). What is wrong with the files or the keys is found from their
    headers and raised before any weight is read, on every rank alike: KeysDiffer where a weight is stored under none of
    its names, CheckpointError for the rest.
    """
    refuse_inference_mode("load weights")
    start = time.perf_counter()
    group = group or dist.group.WORLD
    weights = on_all_ranks(lambda: _plan(module, checkpoint), group)
    shard_device = torch.device("cpu") if offload_to_host else device
    bytes_read = on_all_ranks(lambda: _fill(weights, device, shard_device), group)
    return LoadReport(len(weights), bytes_read, time.perf_counter() - start)


_Filling = tuple[Weight, StoredTensor]
"""A weight of the module, and the tensor in a file that fills it."""


def _plan(module: nn.Module, checkpoint: Checkpoint) -> list[_Filling]:
    """Pair every weight of the module with one stored tensor, in the order of the files."""
    weights = find_weights(module)
    stored = match_keys(checkpoint, [weight.names for weight in weights])
    plan = list(zip(weights, stored, strict=True))
    _refuse_unfit(module, plan)
    return sorted(plan, key=lambda filling: (filling[1].file, filling[1].key))


def _refuse_unfit(module: nn.Module, plan: list[_Filling]) -> None:
    refuse_unfit((stored, weight.tensor) for weight, stored in plan)
    filled = [s.key for weight, s in plan if isinstance(weight.tensor, nn.Parameter) and not weight.tensor.is_meta]
    if filled:
        raise CheckpointError(f"{type(module).__name__} has weights already ({few(filled)}); build it on meta")
    planned = {id(weight.tensor) for weight, _ in plan}
    empty = [name for name, buffer in module.named_buffers() if buffer.is_meta and id(buffer) not in planned]
    if empty:
        raise CheckpointError(
            f"{type(module).__name__} has meta buffers that no file stores ({few(empty)}); build it with "
            "accelerate.init_empty_weights(include_buffers=False)"
        )


def _fill(plan: list[_Filling], device: torch.device, shard_device: torch.device) -> int:
    """Read this rank's part of every weight; returns the bytes read."""
    bytes_read = 0
    for file, in_file in groupby(plan, key=lambda filling: filling[1].file):
        try:
            with safe_open(file, framework="pt") as handle:
                for weight, stored in in_file:
                    bytes_read += _fill_one(weight, stored.key, handle, device, shard_device)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} could not be read: {error}") from error
    return bytes_read


def _fill_one(weight: Weight, key: str, handle: safe_open, device: torch.device, shard_device: torch.device) -> int:
    tensor = weight.tensor
    if isinstance(tensor, DTensor):
        shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        local = torch.empty(shape, dtype=tensor.dtype, device=shard_device)
        part = handle.get_slice(key)[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]
        local.copy_(part)
        # Not DTensor.from_local: it moves what rests in host memory to the mesh's device.
        filled: torch.Tensor = DTensor(local, tensor._spec, requires_grad=False)
    else:
        part = handle.get_tensor(key)
        filled = torch.empty(tensor.shape, dtype=tensor.dtype, device=device).copy_(part)
    if isinstance(tensor, nn.Parameter):
        filled = nn.Parameter(filled, requires_grad=tensor.requires_grad)
    weight.replace(filled)
    return part.numel() * part.element_size()
