"""A forward whose tokens ranks share out gives what the whole one gives, but for what other orders of its sums move."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from runner.components.context import Context, context_of
from tests.distributed.context_models import MODELS, context_mesh, model_and_call
from tests.ranks import World, on_ranks

# Where nothing is summed in another order: no text in the same attention. By an odd number of rows, kernels of matmul
# may choose another one.
EXACT = ("wan", "chronoedit")
LENGTHS = {"even": (16, 12), "uneven picture": (15, 12), "uneven text": (16, 11), "uneven both": (13, 9)}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", MODELS)
@on_ranks(2)
def test_a_forward_in_fp32(world: World, name: str, lengths: str) -> None:
    expect_the_whole_one(world, name, lengths)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", MODELS)
@on_ranks(4)
def test_a_forward_over_four_ranks(world: World, name: str, lengths: str) -> None:
    expect_the_whole_one(world, name, lengths)


def expect_the_whole_one(world: World, name: str, lengths: str) -> None:
    model, call = model_and_call(name, *LENGTHS[lengths])
    model.to(world.device)
    whole = run(model, call)
    context = Context(model, context_mesh(world.device.type, world.size))
    if "padded" in name and lengths != "even" and world.size > 2:
        with pytest.raises(ValueError, match=r"mesh.context=2"):  # whose mask diffusers gets wrong
            run(model, call)
        return
    shared = run(model, call)
    is_exact = name.startswith(EXACT) and lengths == "even" and world.device.type == "cpu"
    assert difference(whole, shared) <= (0.0 if is_exact else 1e-6)
    assert_alike(shared)
    with context.whole():
        assert torch.equal(run(model, call), whole)
    context.remove()
    assert context_of(model) is None and torch.equal(run(model, call), whole)


@pytest.mark.parametrize("name", MODELS)
@on_ranks(2)
def test_a_forward_in_bf16(world: World, name: str) -> None:
    model, call = model_and_call(name, *LENGTHS["uneven both"])
    model.to(world.device, torch.bfloat16)
    call = {key: _as_bf16(value) for key, value in call.items()}
    whole = run(model, call)
    Context(model, context_mesh(world.device.type, world.size))
    shared = run(model, call)
    assert difference(whole, shared) <= 5e-3
    assert_alike(shared)


def run(model: nn.Module, call: dict[str, Any]) -> torch.Tensor:
    device = next(model.parameters()).device
    with torch.inference_mode():
        outputs = model(**{key: _to(value, device) for key, value in call.items()}, return_dict=False)
    return torch.cat([output.flatten() for output in outputs])


def difference(wanted: torch.Tensor, got: torch.Tensor) -> float:
    """The root of the mean square of the difference, relative."""
    assert torch.isfinite(wanted).all() and wanted.float().std() > 1e-3
    return float((wanted - got).float().norm() / wanted.float().norm())


def assert_alike(mine: torch.Tensor) -> None:
    """On all ranks, bit for bit."""
    others = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(others, mine)
    assert all(torch.equal(mine, other) for other in others)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_to(one, device) for one in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _as_bf16(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_bf16(one) for one in value]
    return value.bfloat16() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
