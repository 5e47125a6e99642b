"""The leaves of what a call is given and gives, as `torch.utils._pytree` finds them, but quicker.

torch's walk looks each value's kind up in a registry, and notes down how the whole is put together. That takes 5 to 15
microseconds for a call's arguments, which are looked at some ten times a round. Nearly all of them are tensors, numbers
and texts in tuples, lists and dicts, which are walked here. Any other kind is left to torch, with all that is in it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

# By exact kind: a subclass may be registered (a named tuple, a library's output).
_LEAVES = frozenset({Tensor, nn.Parameter, bool, int, float, str, type(None), torch.dtype, torch.device})


def leaves_of(values: Any) -> list[Any]:
    """As `tree_leaves`."""
    found: list[Any] = []
    _find(values, found)
    return found


def _find(value: Any, found: list[Any]) -> None:
    kind = type(value)
    if kind in _LEAVES:
        found.append(value)
    elif kind is tuple or kind is list:
        for inner in value:
            _find(inner, found)
    elif kind is dict:
        for inner in value.values():
            _find(inner, found)
    elif issubclass(kind, Tensor):
        found.append(value)
    else:
        found.extend(tree_leaves(value))


def with_leaves(function: Callable[[Any], Any], values: Any) -> Any:
    """As `tree_map`: the same, put together of what `function` gives for each leaf."""
    kind = type(values)
    if kind in _LEAVES:
        return function(values)
    if kind is tuple:
        return tuple([with_leaves(function, inner) for inner in values])
    if kind is list:
        return [with_leaves(function, inner) for inner in values]
    if kind is dict:
        return {key: with_leaves(function, inner) for key, inner in values.items()}
    if issubclass(kind, Tensor):
        return function(values)
    return tree_map(function, values)
