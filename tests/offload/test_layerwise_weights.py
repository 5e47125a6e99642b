"""Weights are whole, always: tied, shared, mixed, away, taken out and put back."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from offload import Offloaded, WeightAway, find_aliases, offload, plan_units
from offload.placeholder import is_away
from tests.offload.memory_store import MemoryStore, packed_bytes
from tests.offload.offload_models import DIM, Stack, example

CPU = torch.device("cpu")


class OddBlock(nn.Module):
    """Weights of two dtypes, without dims, without elements, permuted, strided, and one under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(DIM, DIM)
        self.proj.weight = nn.Parameter(torch.randn(DIM, DIM).t())
        self.low = nn.Parameter(torch.randn(DIM, dtype=torch.bfloat16))
        self.gate = nn.Parameter(torch.randn(()))
        self.empty = nn.Parameter(torch.empty(0, DIM))
        self.strided = nn.Parameter(torch.randn(DIM, 2)[:, 0])
        self.again = nn.Linear(DIM, DIM)
        self.again.weight = self.proj.weight
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("none", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(x) * self.low + self.gate * self.strided + self.count
        return self.again(x).tanh() + self.empty.sum()


class Odd(nn.Module):
    """Ties across blocks, between a block and what is outside, and outside; a buffer that two blocks have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(DIM, DIM)
        self.blocks = nn.ModuleList(OddBlock() for _ in range(7))
        self.blocks[2].again.bias = self.blocks[1].again.bias  # across blocks
        self.blocks[4].proj.bias = self.embed.bias  # with what is outside
        self.blocks[5].register_buffer("table", torch.rand(DIM))
        self.blocks[6].register_buffer("table", self.blocks[5].table)
        self.head = nn.Linear(DIM, DIM)
        self.head.weight = self.embed.weight
        self.head.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x) + self.blocks[5].table


def odd(**options: Any) -> tuple[Odd, Offloaded]:
    model = Odd()
    return model, offload(model, MemoryStore(model, views=False), device=CPU, **options)


def expected() -> torch.Tensor:
    with torch.no_grad():
        return Odd()(example())


@pytest.mark.parametrize("options", [{"window": 1}, {"window": 2, "resident_blocks": 1}, {"window": "all"}])
@torch.no_grad()
def test_odd_and_tied_weights_are_right(options: dict[str, Any]) -> None:
    model, offloaded = odd(**options)
    objects = {name: id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False)}
    for _ in range(3):
        assert torch.equal(model(example()), expected())
    offloaded.end()
    offloaded.remove()
    assert torch.equal(model(example()), expected())
    assert {name: id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False)} == objects
    assert model.head.weight is model.embed.weight


def test_units_own_each_weight_once() -> None:
    plan = plan_units(Odd())
    assert list(plan) == ["blocks.0", "blocks.3", "blocks.5", "blocks.6", "", "buffers"]
    assert "head.weight" not in plan[""] and "embed.weight" in plan[""]
    assert "blocks.0.again.weight" not in plan["blocks.0"]
    assert "blocks.5.table" in plan["buffers"] and "blocks.6.table" not in plan["blocks.6"]
    aliases = find_aliases(Odd())
    assert aliases["embed.weight"] == ("head.weight",) and aliases["embed.bias"] == ("blocks.4.proj.bias",)
    assert aliases["blocks.0.proj.weight"] == ("blocks.0.again.weight",) and "blocks.0.low" not in aliases
    names = [name for tensors in plan.values() for name in tensors]
    assert len(names) == len(set(names)) == len({id(t) for unit in plan.values() for t in unit.values()})
    persistent = {id(t) for t in Odd().state_dict(keep_vars=True).values()}
    assert len(names) == len(persistent)


@pytest.mark.parametrize("up", [False, True])
def test_shapes_dtypes_and_devices_are_the_true_ones(up: bool) -> None:
    plain = Odd()
    model, offloaded = odd()
    if up:
        offloaded.begin()
    for (name, tensor), (wanted_name, wanted) in zip(
        (*model.named_parameters(), *model.named_buffers()),
        (*plain.named_parameters(), *plain.named_buffers()),
        strict=True,
    ):
        assert name == wanted_name
        assert tensor.shape == wanted.shape and len(tensor.shape) == tensor.ndim == tensor.dim()
        assert (tensor.dtype, tensor.device) == (wanted.dtype, wanted.device), name
        assert tensor.numel() == wanted.numel() and tensor.nbytes == wanted.nbytes
        assert isinstance(tensor, nn.Parameter) == isinstance(wanted, nn.Parameter)
        assert tensor.requires_grad == wanted.requires_grad and not tensor.is_inference()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    assert "away" in repr(model.blocks[0].low)


READS: dict[str, Any] = {
    "add": lambda w: w + 1,
    "broadcast": lambda w: torch.ones(1) * w,
    "cat": lambda w: torch.cat([torch.ones(1), w]),  # torch skips an empty tensor here without a word
    "linear": lambda w: nn.functional.linear(torch.ones(DIM), w),
    "data": lambda w: w.data,
    "item": lambda w: w.tolist(),
    "in place": lambda w: w.zero_(),
    "copy into": lambda w: torch.ones(DIM).copy_(w),
    "index": lambda w: w[0],
    "pointer": lambda w: w.data_ptr(),
    "numpy": lambda w: w.numpy(),
    "convert": lambda w: w.to(torch.float64),
    "state": lambda w: w.detach() + 1,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("inference", [False, True])
def test_reading_a_weight_that_is_away_raises(read: str, inference: bool) -> None:
    model, _ = odd()
    for tensor, name in [(model.blocks[3].low, "blocks.3.low"), (model.blocks[3].count, "blocks.3.count")]:
        with torch.inference_mode(inference), torch.no_grad(), pytest.raises(WeightAway, match=name):
            READS[read](tensor)
    with torch.no_grad():
        assert torch.equal(model(example()), expected())


@pytest.mark.parametrize("state", ["at rest", "up", "after a call", "in inference mode"])
def test_state_dict_gives_the_true_weights(state: str) -> None:
    plain = Odd().state_dict()
    model, offloaded = odd(resident_blocks=1)
    if state == "up":
        offloaded.begin()
    with torch.inference_mode(state == "in inference mode"), torch.no_grad():
        if state == "after a call":
            model(example())
        found = model.state_dict(prefix="model.")
        output = model(example())
    assert list(found) == [f"model.{name}" for name in plain]
    for name, tensor in plain.items():
        assert torch.equal(found[f"model.{name}"], tensor), name
        assert found[f"model.{name}"].stride() == tensor.stride() or name.endswith("strided")
        assert not found[f"model.{name}"].is_inference()
    offloaded.end()
    for name, tensor in plain.items():  # not views of buffers that go on
        assert torch.equal(found[f"model.{name}"], tensor), name
    assert torch.equal(output, expected())


def test_loading_converting_and_copying_are_refused() -> None:
    model, _ = odd()
    state = Odd().state_dict()
    refused: list[Any] = [
        lambda: model.load_state_dict(state),
        lambda: model.load_state_dict(state, assign=True),
        lambda: model.blocks[0].load_state_dict(Odd().blocks[0].state_dict()),
        lambda: model.head.load_state_dict(Odd().head.state_dict(), assign=True),
        lambda: model.to(torch.float64),
        lambda: model.half(),
        lambda: model.to("meta"),
        lambda: model.to(memory_format=torch.channels_last),
        lambda: model.head.double(),
        lambda: model.blocks[0].to(torch.bfloat16),
        lambda: copy.deepcopy(model),
    ]
    for refuse in refused:
        with pytest.raises(RuntimeError, match="offload"):
            refuse()
    with torch.no_grad():
        assert torch.equal(model(example()), expected())
    assert model.to("cpu") is model
    stack = Stack()
    offload(stack, MemoryStore(stack), device=CPU)
    assert stack.to("cpu", torch.float32) is stack and stack.float() is stack
    assert stack.blocks[0].float() is stack.blocks[0]


@pytest.mark.parametrize("state", ["at rest", "up", "after a call", "with its head"])
@pytest.mark.parametrize("resident_blocks", [0, 2])
def test_remove_gives_the_plain_module_back(state: str, resident_blocks: int) -> None:
    model, plain = Odd(), Odd()
    before = {name: set(vars(inner)) for name, inner in model.named_modules()}
    offloaded = offload(model, MemoryStore(model), device=CPU, resident_blocks=resident_blocks)
    with torch.no_grad():
        if state == "up":
            offloaded.begin()
        if state == "with its head":
            offloaded.prefetch_head()
        if state == "after a call":
            model(example())
    assert offloaded.remove() is model and offloaded.remove() is model
    assert {name: set(vars(inner)) for name, inner in model.named_modules()} == before
    for (name, tensor), wanted in zip(
        model.state_dict(keep_vars=True).items(), plain.state_dict(keep_vars=True).values(), strict=True
    ):
        assert type(tensor) is type(wanted) and torch.equal(tensor, wanted), name
        assert tensor.requires_grad == wanted.requires_grad, name
        assert not vars(tensor) and tensor.data_ptr() % 64 == 0
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    for inner in model.modules():
        hooks = (inner._state_dict_hooks, inner._load_state_dict_pre_hooks, inner._forward_hooks)
        assert not any(hooks)
    model.double().load_state_dict(Odd().double().state_dict())
    copy.deepcopy(model)
    with torch.no_grad():
        output = model(example().double())
    torch.testing.assert_close(output.float(), expected(), rtol=1e-4, atol=1e-4)


def test_remove_inside_inference_mode_is_refused() -> None:
    _, offloaded = odd()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="refusing"):
        offloaded.remove()


def test_remove_keeps_what_lies_over_it() -> None:
    model, offloaded = odd()
    ours = model.forward
    model.forward = lambda x: ours(x)
    with pytest.raises(RuntimeError, match=r"Odd\.forward was replaced"):
        offloaded.remove()
    with torch.no_grad():
        assert torch.equal(model(example()), expected())
    model.forward = ours
    offloaded.remove()


def test_weights_that_were_never_there() -> None:
    """A module on meta, with real non-persistent buffers, is filled by its store alone."""
    plain = Stack()
    store = MemoryStore(plain)
    model = Stack()
    for inner in model.modules():
        for name, parameter in list(inner._parameters.items()):
            assert parameter is not None
            inner._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)
        for name, buffer in list(inner._buffers.items()):
            if buffer is not None and name != "shift":
                inner._buffers[name] = buffer.to("meta")
    model.head.weight = model.embed.weight  # tied on meta
    plain.head.weight = plain.embed.weight
    store = MemoryStore(plain)
    assert {u: list(t) for u, t in plan_units(model).items()} == {u: list(t) for u, t in store.plan.items()}
    offloaded = offload(model, store, device=CPU)
    assert model.head.weight is model.embed.weight
    assert model.embed.weight.device == CPU
    with torch.no_grad():
        assert torch.equal(model(example()), plain(example()))
    offloaded.remove()
    with torch.no_grad():
        assert torch.equal(model(example()), plain(example()))


def test_non_persistent_buffers_on_meta_are_refused() -> None:
    model = Stack()
    store = MemoryStore(model)
    model.blocks[1].shift = model.blocks[1].shift.to("meta")
    with pytest.raises(ValueError, match="non-persistent buffers on meta"):
        offload(model, store, device=CPU)


def test_tensor_subclasses_are_refused() -> None:
    class Quantised(torch.Tensor):
        pass

    model = Stack()
    store = MemoryStore(model)
    model.head.weight = nn.Parameter(torch.ones(DIM, DIM).as_subclass(Quantised))
    with pytest.raises(ValueError, match=r"head.weight is a \w+; only plain"):
        offload(model, store, device=CPU)


def test_blocks_read_from_outside_stay_with_the_rest() -> None:
    class Peeking(Stack):
        def forward(self, x: torch.Tensor, order: Any = None) -> torch.Tensor:
            return super().forward(x + self.blocks[0].up(x).mean(), order)

    model = Peeking()
    assert "blocks.0" not in plan_units(model) and "blocks.1" in plan_units(model)
    offloaded = offload(model, MemoryStore(model), device=CPU)
    with torch.no_grad():
        assert torch.equal(model(example()), Peeking()(example()))
    offloaded.end()
    assert all(map(is_away, model.parameters()))


def test_packed_bytes_give_back_the_weights() -> None:
    """Of the tests' own store: what it packs is what the module has."""
    model = Odd()
    store = MemoryStore(model)
    for unit, tensors in store.plan.items():
        assert torch.equal(packed_bytes(store.packings[unit], tensors), store.bytes[unit])
