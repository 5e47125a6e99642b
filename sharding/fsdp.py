"""Shard a component's weights over ranks with FSDP2, gathered block by block around each block's forward."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Shard

from sharding.priming import suspend_requires_grad
from sharding.recovery import guard_methods
from sharding.state import is_sharded
from weights.blocks import find_units, spread
from weights.memory import hold
from weights.modes import refuse_inference_mode

logger = logging.getLogger(__name__)


def shard(
    module: nn.Module,
    mesh: DeviceMesh,
    *,
    reshard_after_forward: bool = True,
    prefetch: int = 1,
    resident_blocks: int = 0,
    offload_to_host: bool = False,
    forward_methods: Sequence[str] = ("encode", "decode"),
    shard_placement_fn: Callable[[nn.Parameter], Shard | None] | None = None,
) -> nn.Module:
    """Shard `module` over `mesh` in place and return it; parameters may be real (the same on every rank) or meta.

    Each block of the outermost ModuleLists is gathered around its own forward and freed after it
    (`reshard_after_forward=False` keeps it gathered). The parameters outside all blocks are gathered at the first call
    and stay so until `reshard(module)`: pipelines read some of them between calls, such as the final norm of a text
    encoder. While a block runs, the next `prefetch` blocks of its list are gathered. `resident_blocks` blocks, spread
    evenly, are kept whole on every rank's device. `offload_to_host` keeps the shards in host memory, pinned unless the
    device is the CPU. `forward_methods` are the methods besides `forward` that read weights, as far as `module` has
    them. `shard_placement_fn` is FSDP's, and chooses a parameter's sharded dim.

    Memory on the device: the shards (none when offloaded), the resident blocks, the parameters outside all blocks, and
    2 + prefetch blocks: the running one, FSDP's buffer of the last gather, those ahead. Call it without autograd. No
    weight requires grad until `prime`; see [Note: requires_grad].

    Raises ValueError when `module` is sharded already, or has fewer blocks than `resident_blocks`.
    """
    refuse_inference_mode("shard a module")
    if is_sharded(module):
        raise ValueError(f"{type(module).__name__} is sharded already; shard a component once")
    if prefetch < 0:
        raise ValueError(f"prefetch={prefetch}; it counts blocks and starts at 0")
    methods = ["forward", *(name for name in forward_methods if callable(getattr(module, name, None)))]
    units = find_units(module, methods)
    for name, reason in units.kept_with_root.items():
        logger.info("%s.%s is gathered with the root, not by itself: %s", type(module).__name__, name, reason)
    resident = set(spread(list(units.blocks.values()), resident_blocks))
    whole = _parameters_kept_whole(module, resident)
    suspend_requires_grad(module)
    device = _device_of(mesh)
    _move(whole, device)

    lists = [[block for block in blocks.values() if block not in resident] for blocks in units.lists]
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if offload_to_host else OffloadPolicy()
    apply = partial(
        fully_shard,
        mesh=mesh,
        shard_placement_fn=shard_placement_fn,
        offload_policy=offload,
        ignored_params=whole,
    )
    for block in (block for blocks in lists for block in blocks):
        _bring(block, device)
        apply(block, reshard_after_forward=reshard_after_forward)
    _bring(module, device)
    apply(module, reshard_after_forward=False)
    for blocks in lists:
        _prefetch_in_order(blocks, prefetch)
    guard_methods(module, methods)
    for name in methods[1:]:
        register_fsdp_forward_method(module, name)
    _keep_class_name(module)
    return module


def unshard(unit: FSDPModule) -> None:
    """Gather the weights of one unit, as its own forward would; a collective. The module was primed.

    Not FSDP's own `unshard`, which looks at the dtypes of the weights that require grad once more, and refuses those of
    a model that keeps some in fp32: see [Note: requires_grad] in priming.py.
    """
    for group in unit._get_fsdp_state()._fsdp_param_groups:
        group.unshard()
        group.wait_for_unshard()


def reshard(module: nn.Module) -> None:
    """Free every gathered weight of a sharded module, those outside all blocks and pending prefetches included.

    Call it when the component is done for now, and before its weights are edited. It also drops the record of forwards
    that FSDP keeps for a backward pass, which grows by one entry a block and call. No communication.
    """
    if not isinstance(module, FSDPModule):
        raise ValueError(f"{type(module).__name__} is not a module that shard() returned")
    module.reset_iter_state()
    for inner in module.modules():  # before the first forward the root does not know its blocks yet
        if isinstance(inner, FSDPModule):
            inner.reshard()


def _parameters_kept_whole(module: nn.Module, resident: set[nn.Module]) -> set[nn.Parameter]:
    """Parameters that FSDP must leave alone: those of resident blocks, and scalars, which have no dim to shard."""
    scalars = {parameter for parameter in module.parameters() if parameter.ndim == 0}
    return scalars | {parameter for block in resident for parameter in block.parameters()}


def _move(parameters: Iterable[nn.Parameter], device: torch.device) -> None:
    """Copy into memory of our own, also on the same device: weights that the library mapped from a file lie at odd
    offsets, which changes CPU kernels and the last bit."""
    for parameter in parameters:
        if not parameter.is_meta:
            hold(parameter, torch.empty_like(parameter, device=device).copy_(parameter.detach()))


def _bring(module: nn.Module, device: torch.device) -> None:
    """To the device what FSDP is about to take over, as it would itself by `.data`: see `hold` for where that fails."""
    for tensor in (*module.parameters(), *module.buffers()):
        if not tensor.is_meta and not isinstance(tensor, DTensor) and tensor.device != device:
            hold(tensor, tensor.to(device))


def _device_of(mesh: DeviceMesh) -> torch.device:
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())


def _prefetch_in_order(blocks: list[nn.Module], depth: int) -> None:
    """Within one list only: that one list is run in order is sure, that another one follows it is not, and a block
    gathered for nothing would hold its memory, and weights that may be edited, until the next call."""
    units: list[FSDPModule] = [block for block in blocks if isinstance(block, FSDPModule)]
    for i, unit in enumerate(units):
        unit.set_modules_to_forward_prefetch(units[i + 1 : i + 1 + depth])


def _keep_class_name(module: nn.Module) -> None:
    """Give the class that `fully_shard` made the name of the class it extends.

    Libraries key tables on the name: transformers finds what `output_hidden_states` should record under `str(class)`,
    and diffusers writes a component's library and class into the pipeline's config.
    """
    sharded, original = type(module), type(module).__mro__[FSDPModule._orig_cls_mro_index]
    sharded.__name__, sharded.__qualname__, sharded.__module__ = (
        original.__name__,
        original.__qualname__,
        original.__module__,
    )
