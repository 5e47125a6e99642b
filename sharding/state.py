"""What a live module's sharding is, read off the module itself, whoever sharded it."""

from dataclasses import dataclass

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Sharding:
    """`shard` ranks hold one copy between them, `replicate` copies are held; `rests_on_host`: slices wait in host
    memory. `by_fsdp`: FSDP2 gathers the weights; otherwise they are DTensors that something else handles."""

    shard: int
    replicate: int
    rests_on_host: bool
    by_fsdp: bool


def is_sharded(module: nn.Module) -> bool:
    """Whether any module below is an FSDP module or any parameter a DTensor, whoever sharded it."""
    return any(isinstance(inner, FSDPModule) for inner in module.modules()) or any(
        isinstance(parameter, DTensor) for parameter in module.parameters()
    )


def sharding_of(module: nn.Module) -> Sharding | None:
    """None where nothing below is sharded."""
    for inner in module.modules():
        if isinstance(inner, FSDPModule):
            for group in inner._get_fsdp_state()._fsdp_param_groups:
                sizes = group.mesh_info.mesh.shape
                on_host = any(parameter.offload_to_cpu for parameter in group.fsdp_params)
                return Sharding(sizes[-1], sizes[0] if len(sizes) == 2 else 1, on_host, by_fsdp=True)
    for parameter in module.parameters():
        if isinstance(parameter, DTensor):
            return Sharding(parameter.device_mesh.size(), 1, parameter.to_local().device.type == "cpu", by_fsdp=False)
    return Sharding(1, 1, False, by_fsdp=True) if is_sharded(module) else None


def bytes_per_rank(module: nn.Module) -> int:
    """Bytes of parameters and buffers that this rank registers now: its slices of what is sharded, and the rest whole.

    Meta parameters count as what they will take. Call `reshard` first for the figure at rest.
    """
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}.values()
    locals_ = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    return sum(t.numel() * t.element_size() for t in locals_)
