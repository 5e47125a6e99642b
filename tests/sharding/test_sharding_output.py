"""A sharded, primed module gives the bits of the same module unsharded, in every option and order of modes."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from sharding import build_mesh, bytes_per_rank, is_sharded, layout, prime, reshard, shard
from tests.memory import peak_anonymous_memory
from tests.ranks import World, on_ranks
from tests.sharding.sharding_models import MODELS, build, call

ORDERS = ("II", "IN", "NI", "INI")  # I: inference mode, N: normal (no_grad)


def expect_same_bits(name: str, world: World, *, replicate: int = 1, order: str = "INI", **options: Any) -> nn.Module:
    model = build(name, world.device)
    with torch.no_grad():
        expected = call(name, model, world.device)
    assert all(output.isfinite().all() for output in expected)
    next(model.parameters()).requires_grad_(False)
    requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    prime(shard(model, build_mesh(world.device.type, replicate=replicate), **options))

    for mode in order:
        with torch.inference_mode() if mode == "I" else torch.no_grad():
            outputs = call(name, model, world.device)
        assert len(outputs) == len(expected)
        for output, wanted in zip(outputs, expected, strict=True):
            assert output.is_inference() == (mode == "I")
            torch.testing.assert_close(output, wanted, rtol=0, atol=0)
        # Which kernel runs depends on it: of what is gathered now, and of the slices.
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == requires_grad
    return model


@pytest.mark.parametrize("name", MODELS)
@on_ranks(1, 2)
def test_each_model_gives_the_same_bits(world: World, name: str) -> None:
    assert is_sharded(expect_same_bits(name, world))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["flux", "wan", "vae"])
@on_ranks(1, 2)
def test_modes_mix_in_any_order(world: World, name: str, order: str) -> None:
    expect_same_bits(name, world, order=order)


OPTIONS: dict[str, dict[str, Any]] = {
    "kept gathered": {"reshard_after_forward": False},
    "no prefetch": {"prefetch": 0},
    "prefetch two": {"prefetch": 2},
    "prefetch beyond the list": {"prefetch": 9},
    "host": {"offload_to_host": True},
    "one resident": {"resident_blocks": 1},
    "all resident": {"resident_blocks": 4},
    "host and resident": {"offload_to_host": True, "resident_blocks": 2},
}


@pytest.mark.parametrize("option", OPTIONS)
@on_ranks(1, 2)
def test_each_option_gives_the_same_bits(world: World, option: str) -> None:
    expect_same_bits("flux", world, **OPTIONS[option])


@on_ranks(2)
def test_wan_offloaded_to_the_host_gives_the_same_bits(world: World) -> None:
    expect_same_bits("wan", world, offload_to_host=True, resident_blocks=1)


def on_dim_1(parameter: nn.Parameter) -> Shard | None:
    return Shard(1) if parameter.ndim > 1 and parameter.shape[1] % 2 == 0 else None


@pytest.mark.parametrize("order", ORDERS)
@on_ranks(1, 2)
def test_sharding_dim_1_gives_the_same_bits(world: World, order: str) -> None:
    expect_same_bits("flux", world, order=order, shard_placement_fn=on_dim_1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", "wan", "vae"])
@on_ranks(4)
def test_replicated_groups_give_the_same_bits(world: World, name: str) -> None:
    expect_same_bits(name, world, replicate=2, resident_blocks=1)


class Wide(nn.Module):
    """Four blocks of 64 MiB: each allocation has pages of its own, so that freeing it gives them back."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4096, 4096, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("prefetch", [0, 1])
@on_ranks(2)
def test_a_call_takes_the_memory_that_shard_states(world: World, prefetch: int) -> None:
    model = shard(Wide().to(world.device), build_mesh(world.device.type), prefetch=prefetch)
    prime(model)
    x = torch.ones(1, 4096, device=world.device)
    with torch.inference_mode(), peak_anonymous_memory() as peak:
        model(x)
    blocks = 2 + prefetch + 1  # gloo gathers through a buffer of its own
    assert peak() <= blocks * layout(model).largest_block + 8 * 2**20


@on_ranks(2)
def test_blocks_are_gathered_only_while_they_run(world: World) -> None:
    model = build("flux", world.device)
    whole = bytes_per_rank(model)
    shard(model, build_mesh(world.device.type), prefetch=0)
    prime(model)
    at_rest = bytes_per_rank(model)
    gathered: list[bool] = []

    def note(*_: object) -> None:
        gathered.append(not isinstance(model.transformer_blocks[1].attn.to_q.weight, DTensor))

    model.transformer_blocks[0].attn.register_forward_hook(note)
    model.transformer_blocks[1].attn.register_forward_hook(note)
    model.single_transformer_blocks[0].attn.register_forward_hook(note)
    with torch.no_grad():
        call("flux", model, world.device)

    assert gathered == [False, True, False]
    assert at_rest <= whole / 2 + 1024
    reshard(model)
    assert bytes_per_rank(model) == at_rest
