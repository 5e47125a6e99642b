"""What a call that fails leaves behind, and what the package refuses."""

import pytest
import torch
from torch import nn

import sharding
from sharding import OutsideRead, build_mesh, bytes_per_rank, is_primed, is_sharded, prime, reshard, shard
from tests.ranks import World, on_ranks
from tests.sharding.sharding_models import build, call
from weights.checkpoint import Checkpoint


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) * self.scale


class Tied(nn.Module):
    """A head tied to the embedding, two blocks that share a weight, one of their own, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.blocks[2].weight = self.blocks[0].weight
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # (n,) -> (n, 8)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x) / self.temperature


@on_ranks(1, 2)
def test_tied_weights_and_scalars_have_one_owner(world: World) -> None:
    torch.manual_seed(0)
    model, tokens = Tied().to(world.device), torch.arange(8, device=world.device)
    with torch.inference_mode():
        expected = model(tokens)
    prime(shard(model, build_mesh(world.device.type)))
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=0)
    reshard(model)
    assert model.blocks[0].weight is model.blocks[2].weight
    assert model.head.weight is model.embed.weight


class Hidden(nn.Module):
    """Reads its blocks in ways that no look at the code finds."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: torch.Tensor, how: str) -> torch.Tensor:
        if how == "module":
            return getattr(self.blocks[1], "no" + "rm")(x)
        if how == "weight":
            return x * getattr(self.blocks[1], "sca" + "le")
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(("how", "named"), [("module", "blocks.1.norm of Hidden"), ("weight", "the root of Hidden")])
@on_ranks(1, 2)
def test_an_outside_read_is_named_and_the_next_call_works(world: World, how: str, named: str) -> None:
    model, x = Hidden().to(world.device), torch.arange(8.0, device=world.device).view(2, 4)
    with torch.no_grad():
        expected = model(x, "blocks")
        prime(shard(model, build_mesh(world.device.type)))
        for _ in range(2):
            with pytest.raises(OutsideRead, match=f"{named} is read from outside its block"):
                model(x, how)
            torch.testing.assert_close(model(x, "blocks"), expected, rtol=0, atol=0)


@on_ranks(2)
def test_an_error_of_the_model_itself_passes_and_leaves_nothing_gathered(world: World) -> None:
    model = build("flux", world.device)
    with torch.no_grad():
        expected = call("flux", model, world.device)
        prime(shard(model, build_mesh(world.device.type)))
        at_rest = bytes_per_rank(model)

        def fail(*_: object) -> None:
            raise FloatingPointError("from within a block")

        hook = model.single_transformer_blocks[0].attn.register_forward_hook(fail)
        with pytest.raises(FloatingPointError, match="from within a block"):
            call("flux", model, world.device)
        assert bytes_per_rank(model) == at_rest
        hook.remove()
        torch.testing.assert_close(call("flux", model, world.device)[0], expected[0], rtol=0, atol=0)


@on_ranks(1)
def test_work_on_weights_is_refused_in_inference_mode(world: World) -> None:
    model, mesh = Hidden(), build_mesh(world.device.type)
    with torch.inference_mode():
        for work in (
            lambda: shard(model, mesh),
            lambda: prime(model),
            lambda: sharding.verify_mixed_modes(mesh),
            lambda: sharding.load_sharded(model, Checkpoint(world.tmp_path), device=world.device),
            lambda: sharding.set_dtype(model, lambda _: torch.bfloat16),
        ):
            with pytest.raises(RuntimeError, match=r"refusing to .* inside torch.inference_mode"):
                work()
    assert not is_sharded(model)


@on_ranks(1)
def test_impossible_requests_name_the_fix(world: World) -> None:
    mesh = build_mesh(world.device.type)
    model = Hidden().to(world.device)
    with pytest.raises(ValueError, match="resident_blocks=3, but there are 2 blocks; choose 0 to 2"):
        shard(model, mesh, resident_blocks=3)
    with pytest.raises(ValueError, match="prefetch=-1; it counts blocks and starts at 0"):
        shard(model, mesh, prefetch=-1)
    shard(model, mesh)  # a refused request leaves nothing half done
    with pytest.raises(ValueError, match="sharded already"):
        shard(model, mesh)
    with pytest.raises(ValueError, match="not a module that shard"):
        reshard(Hidden())


@on_ranks(1, 2)
def test_mixed_modes_are_verified_without_touching_the_random_state(world: World) -> None:
    before = torch.get_rng_state()
    sharding.verify_mixed_modes(build_mesh(world.device.type))
    assert torch.equal(torch.get_rng_state(), before)


@on_ranks(2)
def test_unprimed_mixing_is_found_unsafe_on_every_rank(world: World) -> None:
    from sharding import verification

    primed, verification.prime = verification.prime, lambda module: None  # as on a build where priming does not help
    try:
        with pytest.raises(sharding.MixedModesUnsafe, match=r"in the order IN .* fails: Inplace update to inference"):
            sharding.verify_mixed_modes(build_mesh(world.device.type))
    finally:
        verification.prime = primed


@on_ranks(1, 2)
def test_priming_is_read_off_the_module(world: World) -> None:
    model = shard(build("flux", world.device), build_mesh(world.device.type))
    assert not is_primed(model)
    prime(model)
    prime(model)
    assert is_primed(model)


@on_ranks(2)
def test_priming_too_late_is_refused(world: World) -> None:
    model = shard(build("flux", world.device), build_mesh(world.device.type))
    with torch.inference_mode():
        call("flux", model, world.device)
    assert not is_primed(model)
    with pytest.raises(RuntimeError, match="ran in inference mode before it was primed"):
        prime(model)


@on_ranks(2)
def test_two_components_do_not_influence_each_other(world: World) -> None:
    plain, sharded = build("sd3", world.device), build("sd3", world.device)
    with torch.no_grad():
        expected = call("sd3", plain, world.device)
    prime(shard(sharded, build_mesh(world.device.type)))
    assert is_sharded(sharded)
    assert not is_sharded(plain)
    for model in (sharded, plain, sharded):
        with torch.inference_mode():
            torch.testing.assert_close(call("sd3", model, world.device)[0], expected[0], rtol=0, atol=0)
    assert type(sharded).__name__ == type(plain).__name__
    assert str(type(sharded)) == str(type(plain))
    assert isinstance(sharded, type(plain))
