"""The leaves of arguments and results are those that torch's own walk finds, however they are put together."""

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from runner.rounds.leaves import leaves_of, with_leaves

Pair = namedtuple("Pair", "first second")


class Named(torch.Tensor):
    pass


class Names(dict[str, Any]):
    """A kind that torch does not know: a leaf as it is, with all that it holds."""


A, B = torch.ones(2), nn.Parameter(torch.zeros(3))
VALUES = [
    A,
    None,
    ((A, 1, "text"), {"hidden": B, "none": None, "nested": [A, (2.0, {"z": A, "a": B})]}),
    ([], (), {}),
    (Pair(A, [B]), OrderedDict(z=A, a=[B, 1])),
    {"output": Transformer2DModelOutput(sample=A), "scale": 3.0},
    [torch.float32, torch.device("cpu"), slice(1, None), Ellipsis, Names(inner=A), {A.dtype}],
    (A.as_subclass(Named), [range(3), 1j, b"bytes"]),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_leaves_are_found_as_torch_finds_them(value: Any) -> None:
    found, wanted = leaves_of(value), tree_leaves(value)
    assert len(found) == len(wanted)
    assert all(one is other for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_what_is_put_together_anew_is_as_torch_puts_it_together(value: Any) -> None:
    def marked(leaf: Any) -> Any:
        return ("marked", id(leaf))

    made, wanted = with_leaves(marked, value), tree_map(marked, value)
    assert made == wanted
    assert tree_flatten(made)[1] == tree_flatten(wanted)[1]
