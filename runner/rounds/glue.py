"""Which functions of a result that is not there yet need no data: what can be answered, and what can be put off.

The pipeline's own code (its glue) often takes a result apart before it makes the next call: a slice, a cast, one half
of it. Such functions are noted and run on the same bits once the result is there. All other functions end the round.
"""

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map

from runner.rounds.leaves import leaves_of
from runner.rounds.signature import Spec, key_of

Function = Callable[..., Any]


class Need(Enum):
    """What a function wants of a result that is not there yet."""

    NOTHING = "answered from shape, dtype and device"
    LIKENESS = "makes a new tensor like it"
    LATER = "takes apart, or copies, one result: may run when it is there"
    LATER_WITH_OTHERS = "pure, and mixes in other tensors: may run when it is there, on copies of those"
    DATA = "needs it now"


def _functions(names: str, *owners: Any) -> set[Function]:
    return {getattr(owner, name) for name in names.split() for owner in owners if hasattr(owner, name)}


def _getters(names: str) -> set[Function]:
    return {getattr(Tensor, name).__get__ for name in names.split()}


_NEEDS: dict[Function, Need] = {}
for _need, _of in (
    (
        Need.LATER_WITH_OTHERS,
        _functions(
            "add sub mul div true_divide subtract multiply divide rsub pow lerp where cat stack concat sqrt square "
            "reciprocal abs exp clamp mean std sum norm __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ "
            "__truediv__ __rtruediv__ __div__ __rdiv__ __pow__ __rpow__",
            Tensor,
            torch,
        ),
    ),
    (
        Need.LATER,
        _functions(
            "chunk split unbind flatten unflatten permute transpose unsqueeze squeeze reshape neg clone movedim "
            "narrow select repeat_interleave",
            Tensor,
            torch,
        )
        | _functions(
            "__getitem__ view view_as expand repeat contiguous to float half bfloat16 double type_as __neg__ detach",
            Tensor,
        ),
    ),
    (Need.LIKENESS, _functions("new_zeros new_ones new_empty new_full", Tensor)),
    (Need.LIKENESS, _functions("zeros_like ones_like", torch)),
    (
        Need.NOTHING,
        _getters("shape dtype device ndim layout is_cuda is_cpu is_meta is_sparse is_quantized itemsize nbytes")
        | _functions("size dim stride numel nelement ndimension is_floating_point is_complex", Tensor, torch)
        | _functions("__len__ __hash__ is_contiguous element_size get_device", Tensor),
    ),
):
    _NEEDS |= dict.fromkeys(_of, _need)


def need_of(function: Function) -> Need:
    return _NEEDS.get(function, Need.DATA)


def like(function: Function, first: Spec, args: Iterable[Any], kwargs: dict[str, Any]) -> Tensor:
    """What `new_zeros`, `zeros_like` and the others make: they look only at what kind of tensor the first one is."""
    own: dict[str, Any] = {"dtype": first.dtype, "device": first.device}
    if function in (torch.zeros_like, torch.ones_like):
        make = torch.zeros if function is torch.zeros_like else torch.ones
        return make(first.size, **{**own, **kwargs})
    return function(torch.empty(0, **own), *args, **kwargs)


Results = tuple[TreeSpec, tuple[Spec, ...]]


class Shapes:
    """What functions that are put off will give, worked out on tensors without data, and remembered."""

    def __init__(self) -> None:
        self._known: dict[Any, Results | None] = {}

    def of(self, function: Function, args: Any, kwargs: Any, device: torch.device) -> Results | None:
        """None where it cannot be known beforehand, or is another device's."""
        key = key_of((args, kwargs))
        if key is None:
            return self._work_out(function, args, kwargs, device)
        if (function, key) not in self._known:
            self._known[function, key] = self._work_out(function, args, kwargs, device)
        return self._known[function, key]

    def _work_out(self, function: Function, args: Any, kwargs: Any, device: torch.device) -> Results | None:
        if any(named != device for named in _devices_in((args, kwargs))):
            return None
        try:
            with torch._C.DisableTorchFunctionSubclass():
                made = function(*tree_map(_without_data, args), **tree_map(_without_data, kwargs))
        except Exception:  # of any kind: the function raises it itself, on the data, when the round is over
            return None
        leaves, tree = tree_flatten(made)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            return None
        return tree, tuple(Spec(tuple(t.shape), t.stride(), t.dtype, device) for t in leaves)


def _devices_in(values: Any) -> list[torch.device]:
    return [device for value in leaves_of(values) if (device := _device(value)) is not None]


def _device(value: Any) -> torch.device | None:
    """The device that an argument names, if it does."""
    if isinstance(value, torch.device):
        return value
    if isinstance(value, str):
        try:
            return torch.device(value)
        except RuntimeError:
            return None
    return None


def _without_data(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return value if _device(value) is None else torch.device("meta")
