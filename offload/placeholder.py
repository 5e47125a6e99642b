"""Weights that are away: what stands in a module for a weight that rests in the store.

While a weight is away, the same Parameter object holds zero elements and has another class. It answers what shape,
dtype and device the true weight has, because libraries size and place their inputs by it, and raises WeightAway, with
its name, on everything that would read it. Zero elements alone are not enough: `torch.cat` skips an empty tensor
without a word, and a dim of size 1 broadcasts to it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from offload.stores.packing import PackedTensor
from weights.memory import hold


def _getters(names: str) -> set[Any]:
    return {getattr(torch.Tensor, name).__get__ for name in names.split()}


def _methods(names: str) -> set[Any]:
    return {getattr(torch.Tensor, name) for name in names.split()}


# Answered from the true weight's shape and strides.
_SHAPE = frozenset(
    _getters("shape ndim nbytes") | _methods("size dim numel nelement stride is_contiguous __len__ ndimension")
)
# Answered by the placeholder: what the true weight would say too.
_SAME = frozenset(
    _getters("dtype device layout is_meta is_cpu is_cuda is_xpu is_mps is_sparse is_quantized is_nested is_leaf")
    | _getters("itemsize grad grad_fn requires_grad")
    | _methods("element_size is_floating_point is_complex is_signed is_inference get_device requires_grad_")
    | {torch.Tensor.requires_grad.__set__, torch.is_floating_point, torch.is_complex, torch.is_inference}  # type: ignore[attr-defined]
)


class WeightAway(RuntimeError):
    """A weight was read while it rests in the store: by code outside its block, or outside its component's stage."""


class _Away(torch.Tensor):
    _true_weight: tuple[str, torch.Tensor]  # its name, and a meta tensor

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SHAPE:
            return func(args[0]._true_weight[1], *args[1:], **kwargs)
        if func not in _SAME and func is not torch.Tensor.detach:
            names = [leaf._true_weight[0] for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, _Away)]
            raise WeightAway(
                f"{', '.join(names)} is away (offloaded) and was read by {getattr(func, '__name__', func)}: a block's "
                "weights are on the device while the block runs, all others between begin() and end()"
            )
        with torch._C.DisableTorchFunctionSubclass():
            answer = func(*args, **kwargs)
        if func is torch.Tensor.detach:  # `state_dict` of a part of the module asks for it; as unreadable as before
            answer.__class__ = _Away
            answer._true_weight = args[0]._true_weight
        return answer

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"<{self._true_weight[0]}, away>"


class _AwayParameter(_Away, nn.Parameter):
    pass


_AWAY: dict[type, type] = {nn.Parameter: _AwayParameter, torch.Tensor: _Away}
_PRESENT = {away: present for present, away in _AWAY.items()}


def supports(tensor: torch.Tensor) -> bool:
    """Plain parameters and buffers; not the tensor subclasses of quantisers, whose bytes say too little."""
    return type(tensor) in _AWAY


def is_away(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, _Away)


def is_described(tensor: torch.Tensor) -> bool:
    """Whether some offloader moves this weight, away or not."""
    return "_true_weight" in vars(tensor)


def describe(tensor: torch.Tensor, name: str, packed: PackedTensor) -> None:
    """Note on the tensor what it will answer while it is away."""
    meta = torch.empty_strided(packed.shape, packed.stride, dtype=packed.dtype, device="meta")
    tensor._true_weight = (name, meta)  # type: ignore[attr-defined]


def forget(tensor: torch.Tensor) -> None:
    del tensor._true_weight  # type: ignore[attr-defined]


def send_away(tensor: torch.Tensor, placeholder: torch.Tensor) -> None:
    """Let go of the weight's memory. `placeholder`: no elements, and the weight's dtype and device. Idempotent."""
    if not is_away(tensor):
        tensor.data = placeholder
        tensor.__class__ = _AWAY[type(tensor)]


def bring_back(tensor: torch.Tensor, data: torch.Tensor) -> None:
    if is_away(tensor):
        tensor.__class__ = _PRESENT[type(tensor)]
    hold(tensor, data)
