"""Fake tensors as a rehearsal meets them: what is known of them all the same, and what becomes one."""

import math
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from runner.plan.tracker import Tracker

_LARGE = 2**20  # elements of what is fake in any case: a mask of all tokens by all tokens would take gigabytes
ZEROS = "_was_zeros"


class FakeTracker(Tracker):
    """Answers, of what is fake, what is known all the same: whether an input is zeros, and how many elements a real
    mask chooses. While `fake` is there, a component runs."""

    fake: FakeTensorMode | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.eq.Scalar and vars(args[0]).get(ZEROS):
            return torch.full(args[0].shape, args[1] == 0)
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [place for index in args[1] for place in _places(index)])
        elif self.fake is not None and _is_large(func, args):
            args, kwargs = tree_map(self._faked, (args, kwargs or {}))
            with self.fake:  # what is made of nothing becomes fake too
                return super().__torch_dispatch__(func, types, args, kwargs)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _faked(self, value: Any) -> Any:
        is_real = isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)
        return self.fake.from_tensor(value) if is_real and self.fake is not None else value


class NoFills(TorchFunctionMode):
    """A number that is written into a part of what is fake changes nothing that a rehearsal sees. HunyuanVideo 1.5
    makes its mask of all tokens by all tokens row by row, which was nine tenths of its rehearsal."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__setitem__ and isinstance(args[0], FakeTensor) and _is_fill(*args[1:]):
            return None
        return func(*args, **(kwargs or {}))


def _is_fill(index: Any, value: Any) -> bool:
    places = index if isinstance(index, tuple) else (index,)
    return isinstance(value, int | float) and all(isinstance(place, int | slice) for place in places)


def _is_large(func: Any, args: Any) -> bool:
    """Whether no fake tensor is there, and a large one would be made: a mask of all tokens by all tokens."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    if any(isinstance(tensor, FakeTensor) for tensor in tensors):
        return False
    if not tensors:  # `torch.full` and its like
        shape = args[0] if args and isinstance(args[0], list | tuple) else ()
        return all(isinstance(size, int) for size in shape) and math.prod(shape) > _LARGE
    if torch.Tag.pointwise not in func.tags:
        return any(tensor.numel() > _LARGE for tensor in tensors)
    return math.prod(torch.broadcast_shapes(*(tensor.shape for tensor in tensors))) > _LARGE


def _places(index: Any) -> list[Any]:
    """What a mask chooses, along each of its dims."""
    is_mask = isinstance(index, torch.Tensor) and not isinstance(index, FakeTensor) and index.dtype is torch.bool
    return list(index.nonzero(as_tuple=True)) if is_mask else [index]
