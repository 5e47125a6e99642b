"""What sharded modules need so that their calls may run inside `torch.inference_mode`.

[Note: priming] FSDP allocates the buffers that weights are gathered into at the first gather, and keeps them. A tensor
made inside `torch.inference_mode` is an inference tensor for ever, so a first forward in inference mode leaves buffers
that a later one cannot write: "Inplace update to inference tensor", or "do not track version counter". Gathering once
in normal mode, before any forward, makes the buffers normal tensors; then calls may run in either mode, in any order.

[Note: requires_grad] It decides more than gradients: `torch.matmul` folds its input into one matrix for a weight that
requires grad, and may take a batched product for one that does not, with other last bits on some CPUs. So a weight
keeps the flag that its library gave it, also where no gradient is ever wanted. But FSDP insists, when it first gathers,
that all weights of a unit that require grad have one dtype, and models keep some in fp32. So the flags are off until
then.
"""

import ctypes
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from weights.modes import normal_mode, refuse_inference_mode

_SUSPENDED = "_require_grad_when_primed"


def suspend_requires_grad(module: nn.Module) -> None:
    """Turn the flags off, and note which were on."""
    vars(module)[_SUSPENDED] = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    module.requires_grad_(False)


def resume_requires_grad(module: nn.Module) -> None:
    """Turn those on again that `suspend` turned off here or below, on the slices that are registered now."""
    for inner in module.modules():
        for name in vars(inner).pop(_SUSPENDED, ()):
            inner.get_parameter(name).requires_grad_(True)


def prime(module: nn.Module) -> None:
    """Gather and free every FSDP module below once, in normal mode, so that later calls may run in any mode.

    See [Note: priming]. Weights get back the `requires_grad` that `shard` took. Idempotent, and a collective: every
    rank calls it, after the weights are loaded and before the first forward.

    Raises RuntimeError when a forward in inference mode came first; only loading the module again helps then.
    """
    refuse_inference_mode("prime a module")
    if any(buffer.is_inference() for buffers in _gather_buffers(module) for buffer in buffers):
        raise RuntimeError(f"{type(module).__name__} ran in inference mode before it was primed; load it anew")
    if not is_primed(module):
        with normal_mode():
            for inner in module.modules():
                if isinstance(inner, FSDPModule):
                    inner._get_fsdp_state()._lazy_init()  # of the root first, else each block would be one
                    inner.unshard()
                    inner.reshard()
                    _give_back_freed_memory()
    resume_requires_grad(module)


def is_primed(module: nn.Module) -> bool:
    """Whether every buffer that FSDP gathers into, here and below, exists and is a normal tensor; read off FSDP."""
    return all(buffers and not any(b.is_inference() for b in buffers) for buffers in _gather_buffers(module))


def _gather_buffers(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """The buffers of each sharded parameter; none yet where it was never gathered."""
    for inner in module.modules():
        if isinstance(inner, FSDPModule):
            for group in inner._get_fsdp_state()._fsdp_param_groups:
                yield from (parameter.all_gather_outputs for parameter in group.fsdp_params)


def _give_back_freed_memory() -> None:
    """glibc keeps freed chunks of up to 32 MiB: gathered blocks on a CPU would add up to the whole weights."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
