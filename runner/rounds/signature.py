"""What kind of call it is: equal for calls whose results have the same shapes, so that one tells of the next."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

_AS_THEY_ARE = (bool, int, str, bytes, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass(frozen=True)
class Spec:
    """A tensor without its data."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "Spec":
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    def empty(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)


class Unknown(Exception):
    """A call of a kind of its own: why."""


def signature_of(args: Any, kwargs: Mapping[str, Any]) -> Hashable:
    """Of a component's call. Raises Unknown where an argument may carry state from call to call (a cache, a random
    generator): then one call does not tell of the next."""
    return _described(args, plain=True), _described(kwargs, plain=True)


def key_of(value: Any) -> Hashable:
    """The same for a function of the glue, whatever kind of tensor it is called with; None where there is none."""
    try:
        return _described(value, plain=False)
    except Unknown:
        return None


def _described(value: Any, *, plain: bool) -> Hashable:
    # Loops and early returns: this is on the way of every call.
    if isinstance(value, Tensor):
        if plain and type(value) not in (Tensor, nn.Parameter):
            raise Unknown(f"it is called with a {type(value).__name__}")
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, _AS_THEY_ARE):
        return type(value), value
    if isinstance(value, float):  # a guidance scale, a time: it decides no shape
        return float
    if isinstance(value, tuple | list):
        return type(value), tuple([_described(inner, plain=plain) for inner in value])
    if isinstance(value, Mapping):
        return type(value), tuple([(key, _described(inner, plain=plain)) for key, inner in value.items()])
    if isinstance(value, slice):
        # A bound that is a tensor decides the shape by its value.
        return slice, *(None if part is None else index(part) for part in (value.start, value.stop, value.step))
    if value is Ellipsis:
        return "..."
    raise Unknown(f"it is called with a {type(value).__name__}, which may keep state from call to call")
