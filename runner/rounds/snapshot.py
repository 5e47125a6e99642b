"""What a call that is put off is made with: its arguments as they were, and the modes that it was called in."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from runner.rounds.leaves import with_leaves

_ALIGNMENT = 64  # bytes


class Snapshot:
    """Copies tensors, which the pipeline's own code may write to meanwhile, each as often as it is one object."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, values: Any) -> Any:
        return with_leaves(self._one, values)

    def _one(self, value: Any) -> Any:
        if type(value) is not Tensor:
            return value
        if id(value) not in self._copies:
            self._copies[id(value)] = value, _copy(value)
        return self._copies[id(value)][1]


def _copy(tensor: Tensor) -> Tensor:
    """With the same strides, and as aligned in memory: kernels choose by both, and so the last bit."""
    if not tensor.numel():
        return tensor.clone()
    itemsize = tensor.element_size()
    length = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    room = torch.empty(length * itemsize + _ALIGNMENT, dtype=torch.uint8, device=tensor.device)
    start = (tensor.data_ptr() - room.data_ptr()) % _ALIGNMENT
    row = room[start : start + length * itemsize].view(tensor.dtype)
    row.copy_(tensor.as_strided((length,), (1,), tensor.storage_offset()))
    return row.as_strided(tensor.shape, tensor.stride(), row.storage_offset())


@dataclass(frozen=True)
class Modes:
    """The glue's, at a call: one of torch's two without gradients."""

    is_inference: bool

    def around(self, compute: Callable[[], Any]) -> Callable[[], Any]:
        return partial(self._run, compute)

    def _run(self, compute: Callable[[], Any]) -> Any:
        with torch.inference_mode() if self.is_inference else torch.no_grad():
            return compute()


def modes_of_now(device_type: str) -> Modes | None:
    """None where a call cannot be made later as it would be made now: inside autocast, or a mode for all functions."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled(device_type) or torch._C._len_torch_function_stack():
        return None
    return Modes(torch.is_inference_mode_enabled())
