"""What sharded modules need so that their calls may run inside `torch.inference_mode`.

[Note: priming] FSDP allocates the buffers that weights are gathered into at the first gather, and keeps them. A tensor
made inside `torch.inference_mode` is an inference tensor for ever, so a first forward in inference mode leaves buffers
that a later one cannot write: "Inplace update to inference tensor", or "do not track version counter". Gathering once
in normal mode, before any forward, makes the buffers normal tensors; then calls may run in either mode, in any order.
"""

import ctypes
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from sharding import requires_grad


def refuse_inference_mode(action: str) -> None:
    """Raise RuntimeError inside `torch.inference_mode`: tensors made there stay inference tensors for ever."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(f"refusing to {action} inside torch.inference_mode; do it in normal mode, at load")


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
        with torch.no_grad():
            for inner in module.modules():
                if isinstance(inner, FSDPModule):
                    inner._get_fsdp_state()._lazy_init()  # of the root first, else each block would be one
                    inner.unshard()
                    inner.reshard()
                    _give_back_freed_memory()
    requires_grad.resume(module)


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
