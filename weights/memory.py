"""The memory of a tensor that others hold on to, exchanged for other memory."""

import torch
from torch import nn


def hold(tensor: torch.Tensor, data: torch.Tensor) -> None:
    """Let the same object have `data`'s memory, dtype and device, and keep its class, attributes and requires_grad.

    `tensor.data = data` cannot move a tensor between the CPU and a device that torch knows by a plug-in alone (npu, or
    whatever else registers itself): such tensors are of another kind inside, and are swapped whole.
    """
    if torch._has_compatible_shallow_copy_type(tensor, data):
        tensor.data = data
        return
    kind, attributes = type(tensor), dict(vars(tensor))
    new = nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data.detach()
    torch.utils.swap_tensors(tensor, new)
    tensor.__class__ = kind
    vars(tensor).update(attributes)
