"""What a pipeline's own code may do with a result that is not there yet: everything, and never see a difference."""

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from runner.calls.lockstep import Lockstep
from runner.components.component import Component
from runner.rounds.round import Shared
from runner.rounds.rounds import Rounds
from tests.ranks import World, on_ranks

Glue = Callable[["Small", Tensor], Any]


class Small(nn.Module):
    """A component whose result is put together in one of many ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(4, 8), kind

    def forward(self, x: Tensor) -> Any:
        y = nn.functional.silu(self.linear(x))
        return {
            "tuple": lambda: (y,),
            "tensor": lambda: y,
            "transposed": lambda: (y.transpose(0, 1),),
            "two": lambda: (y, y * 2),
            "same": lambda: (y, y),
            "dict": lambda: {"a": y, "n": 3, "none": None},
            "list": lambda: [y, y + 1],
            "bf16": lambda: (y.bfloat16(),),
            "view": lambda: (y[:, :4],),
            "scalar": lambda: (y.sum(),),
            "bool": lambda: (y > 0,),
            "int": lambda: (y.argmax(-1),),
            "complex": lambda: (torch.complex(y, -y),),
            "empty": lambda: (y[:0],),
        }[self.kind]()


def two(glue: Callable[[Tensor, Tensor], Any]) -> Glue:
    """On the results of two calls that do not depend on each other."""
    return lambda model, x: glue(model(x)[0], model(x + 1)[0])


def _view_then_in_place(model: Small, x: Tensor) -> Tensor:
    a = model(x)[0]
    view, b = a[:, :4], model(x + 1)[0]
    a.mul_(2)
    return view + b[:, :4]


def _in_place_on_a_view(model: Small, x: Tensor) -> Tensor:
    a = model(x)[0]
    view, b = a[:, :4], model(x + 1)[0]
    view.mul_(2)
    return a + b


def _plain_written_after(model: Small, x: Tensor) -> Tensor:
    a, offset = model(x)[0], torch.ones(8)
    a = a * offset  # put off, on the offset as it is now
    offset.zero_()
    return a + model(x + 1)[0]


def _inputs_written_after(model: Small, x: Tensor) -> Tensor:
    x = x.clone()
    a = model(x)[0]
    x.add_(1)
    return a + model(x)[0]


def _set_into(a: Tensor, b: Tensor) -> Tensor:
    both = torch.zeros(2, *a.shape)
    both[0], both[1] = a, b
    return both


def _asked(a: Tensor, b: Tensor) -> Tensor:
    return torch.tensor([isinstance(a, Tensor), a.ndim == len(b) == 2, b.is_floating_point()]) & (a > b)[0, 0]


def _random(a: Tensor, b: Tensor) -> Tensor:
    torch.manual_seed(0)
    return torch.randn_like(a) + b


# The kind of result, what the glue does, and how wide its rounds are where it is not two.
CASES: dict[str, tuple[str, Glue]] = {
    "guidance": ("tuple", two(lambda a, b: b + 3 * (a - b))),
    "chunks and a cast": ("tuple", two(lambda a, b: a.chunk(2, -1)[0].float() * 2 + b.chunk(2, -1)[1])),
    "slices": ("tuple", two(lambda a, b: b[:, :3] + a[:, 1:4])),
    "in place": ("tuple", two(lambda a, b: (a.mul_(2), b.add_(a), a + b)[2])),
    "a view, then in place": ("tuple", _view_then_in_place),
    "in place on a view": ("tuple", _in_place_on_a_view),
    "operator in place": ("tuple", two(lambda a, b: (a.__iadd__(b), a)[1])),
    "set an item": ("tuple", two(lambda a, b: (a.__setitem__((slice(None), 0), b[:, 1]), a)[1])),
    "set into another": ("tuple", two(_set_into)),
    "numpy": ("tuple", two(lambda a, b: torch.from_numpy(a.numpy() + b.numpy()))),
    "asarray": ("tuple", two(lambda a, b: torch.from_numpy(np.asarray(a) + np.array(b)))),
    "numpy's function": ("tuple", two(lambda a, b: torch.tensor(np.linalg.norm(a)))),
    "item": ("scalar", two(lambda a, b: torch.tensor([a.item(), float(b)]))),
    "if": ("scalar", two(lambda a, b: torch.tensor(1 if a > b else 2))),
    "math": ("scalar", two(lambda a, b: torch.tensor(math.sqrt(abs(a))) + b)),
    "format": ("scalar", two(lambda a, b: torch.tensor(float(f"{a:.6f}")) + b)),
    "tolist": ("tuple", two(lambda a, b: torch.tensor(a.tolist()) + b)),
    "as_tensor": ("tuple", two(lambda a, b: torch.as_tensor(a) + torch.tensor(b))),
    "cat": ("tuple", two(lambda a, b: torch.cat([a, b]))),
    "cat with a plain one": ("tuple", lambda m, x: torch.cat([m(x)[0], x, m(x)[0]], -1)),
    "stack, std": ("tuple", two(lambda a, b: torch.stack([a, b]).std(dim=0))),
    "rescaled": ("tuple", two(lambda a, b: a * (a.norm(dim=-1, keepdim=True) / torch.norm(b, dim=-1, keepdim=True)))),
    "lerp": ("tuple", two(lambda a, b: torch.lerp(a, b, 1.5))),
    "out": ("tuple", two(lambda a, b: torch.add(a, b, out=torch.empty(a.shape)))),
    "out is a result": ("tuple", two(lambda a, b: torch.add(torch.ones(a.shape), b, out=a))),
    "twice the same call": ("tuple", lambda m, x: (lambda a: a + m(x)[0] + a.clone())(m(x)[0])),
    "copies": ("tuple", two(lambda a, b: copy.deepcopy(a) + copy.copy(b))),
    "pickle": ("tuple", two(lambda a, b: pickle.loads(pickle.dumps(a.clone())) + b)),
    "transposed": ("transposed", two(lambda a, b: a.contiguous() + b)),
    "a tensor": ("tensor", lambda m, x: m(x) - m(x + 1)),
    "two results": ("two", lambda m, x: (lambda p, q: p[0] + q[1])(m(x), m(x + 1))),
    "unpacked": ("two", lambda m, x: (lambda a, b: a * b)(*m(x))),
    "the same twice": ("same", lambda m, x: (lambda p, q: (p[0].mul_(2), p[1] + q[0])[1])(m(x), m(x + 1))),
    "dict": ("dict", lambda m, x: (lambda p, q: p["a"] * p["n"] + q["a"])(m(x), m(x + 1))),
    "list": ("list", lambda m, x: torch.stack([p - q for p, q in zip(m(x), m(x + 1), strict=True)])),
    "bf16": ("bf16", two(lambda a, b: (b + 3 * (a - b)).float())),
    "a view comes out": ("view", two(lambda a, b: a.reshape(-1) + b.flatten())),
    "bools": ("bool", two(lambda a, b: a & ~b)),
    "ints": ("int", two(lambda a, b: torch.arange(8.0)[a] + torch.arange(8.0)[b])),
    "complex": ("complex", two(lambda a, b: (a * b).real)),
    "nothing": ("empty", two(lambda a, b: torch.cat([a, b]))),
    "einsum": ("tuple", two(lambda a, b: torch.einsum("ij,kj->ik", a, b))),
    "attention": ("tuple", two(lambda a, b: nn.functional.scaled_dot_product_attention(a[None], b[None], a[None]))),
    "dtypes": ("tuple", two(lambda a, b: a.to(torch.bfloat16) + b.to("cpu", torch.bfloat16))),
    "negative": ("tuple", two(lambda a, b: -a + (-b))),
    "powers": ("tuple", two(lambda a, b: 2.0**a + a**2 + 1 / b)),
    "noise of its shape": ("tuple", two(_random)),
    "zeros of its kind": ("tuple", two(lambda a, b: torch.cat([a, a.new_zeros(1, 8), b.new_ones(1, 8), b]))),
    "iterated": ("tuple", two(lambda a, b: torch.stack([p + q for p, q in zip(a, b, strict=True)]))),
    "where": ("tuple", two(lambda a, b: torch.where(a > b, a, b))),
    "asked what it is": ("tuple", two(_asked)),
    "printed": ("tuple", two(lambda a, b: (str(a), repr(b), a + b)[2])),
    "data, transposed": ("tuple", two(lambda a, b: a.data + b.T.T)),
    "compared": ("tuple", two(lambda a, b: torch.tensor([a is b, torch.equal(a, a), torch.allclose(a, b)]))),
    "fft": ("tuple", two(lambda a, b: torch.fft.ifft(torch.fft.fft(a) + torch.fft.fft(b)).real)),
    "interpolated": ("tuple", two(lambda a, b: nn.functional.interpolate(a[None], scale_factor=2.0)[0, :, :8] + b)),
    "key of a dict": ("tuple", two(lambda a, b: {a: 1, b: 2} and a + b)),
    "copied into": ("tuple", two(lambda a, b: torch.zeros(a.shape).copy_(a) + b)),
    "vmap": ("tuple", two(lambda a, b: torch.vmap(torch.dot)(a, b))),
    "contains": ("tuple", two(lambda a, b: torch.tensor(0.5 in a) | (b > 0))),
    "written after": ("tuple", _plain_written_after),
    "inputs written after": ("tuple", _inputs_written_after),
    "three": ("tuple", lambda m, x: (lambda a, b, c: a + b - c)(m(x)[0], m(x * 2)[0], m(x * 3)[0])),
    "five": ("tuple", lambda m, x: sum(y * 1.5 for y in [m(x * i)[0] for i in range(5)])),
    "dependent": ("tuple", lambda m, x: m(m(x)[0][:, :4])[0]),
    "dependent, and one more": ("tuple", lambda m, x: m(m(x)[0][:, :4] * 2)[0] + m(x)[0]),
}  # fmt: skip
WIDEST = {"unpacked": 1, "dependent": 1, "twice the same call": 2, "three": 3, "five": 5}
IN_A_ROW = 4  # the first two learn


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@on_ranks(1, 2, 3)
def test_the_glue_sees_plain_tensors(world: World, mode: Any) -> None:
    """On one rank the calls are put off, as where their weights move; on two and three they are shared out."""
    warnings.simplefilter("ignore")
    group = dist.group.WORLD if world.size > 1 else None
    for name, (kind, glue) in CASES.items():
        torch.manual_seed(0)
        model, x = Small(kind), torch.randn(2, 4)
        with mode():
            want = glue(model, x)
            shared = Shared(Lockstep(group), world.device, group, group, moving=frozenset({"model"}))
            rounds = Rounds([Component("model", model, "denoise")], shared)
            for _ in range(IN_A_ROW):
                with rounds.request():
                    got = glue(model, x)
                assert _same(got, want), name
            assert max(rounds.figures.components["model"].widths) == WIDEST.get(name, 2), name
            if WIDEST.get(name, 2) > 1:
                assert rounds.figures.components["model"].shared_out >= 4, name
            rounds.close()


def _same(got: Any, want: Any) -> bool:
    pairs = list(zip(tree_leaves(got), tree_leaves(want), strict=True))
    return all(
        type(a) is Tensor and torch.equal(a, b) and a.stride() == b.stride() and a.dtype == b.dtype for a, b in pairs
    )
