"""Each rank merges its own slices, without communication, and the whole has the bits of the merge in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from torch.utils._python_dispatch import TorchDispatchMode

from lora import BesideLayers, Edits, MergedWeights, ReadBase, edits_of, read_adapter
from lora.adapter import Adapter
from sharding import build_mesh, prime, reshard, shard
from tests import tiny
from tests.lora.lora_files import modules_of, open_tiny, picture, save_adapter
from tests.ranks import World, on_ranks
from weights.checkpoint import Checkpoint
from weights.stored_weights import StoredWeights

FAMILIES = ("flux", "sd3", "qwenimage", "wan", "pixart")
BOTH = {"one": 0.7, "two": -0.4}


class Collectives(TorchDispatchMode):
    """The collectives that are called while it is open, whoever calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional", "fsdp"):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def adapted(name: str, world: World, dtype: torch.dtype) -> tuple[Any, dict[str, Adapter]]:
    """A pipeline of this rank's own, and two adapters for it, all written by rank 0."""
    if world.rank == 0:
        for seed, key in enumerate(BOTH):
            save_adapter(open_tiny(name, world.tmp_path), world.tmp_path / key, seed=seed)
    dist.barrier()
    pipeline = open_tiny(name, world.tmp_path, dtype)
    return pipeline, {key: read_adapter(world.tmp_path / key, modules_of(pipeline)) for key in BOTH}


def expect_equal(sharded: nn.Module, whole: nn.Module) -> None:
    """Every rank's slices are those of the whole module; looked at without gathering."""
    expected = dict(whole.named_parameters())
    for key, parameter in sharded.named_parameters():
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            slices = dist.tensor.distribute_tensor(expected[key].data, mesh, placements).to_local()
            assert torch.equal(parameter.to_local(), slices), key
        else:
            assert torch.equal(parameter, expected[key]), key


def base_in(folder: Path) -> ReadBase:
    return StoredWeights(Checkpoint(folder), [[key] for key in Checkpoint(folder).stored()]).read


def on_dim_1(parameter: nn.Parameter) -> Shard | None:
    return Shard(1) if parameter.ndim > 1 and parameter.shape[1] % 2 == 0 else None


OPTIONS: dict[str, dict[str, Any]] = {
    "rows": {},
    "columns": {"shard_placement_fn": on_dim_1},
    "host": {"offload_to_host": True},
    "resident": {"resident_blocks": 2},
    "kept gathered": {"reshard_after_forward": False},
}


def expect_merges(world: World, name: str, dtype: torch.dtype, *, replicate: int = 1, **options: Any) -> None:
    whole, adapters = adapted(name, world, dtype)
    ours = open_tiny(name, world.tmp_path, dtype)
    prime(shard(ours.transformer, build_mesh("cpu", replicate=replicate), **options))
    theirs, place = MergedWeights(whole.transformer), MergedWeights(ours.transformer)
    base = picture(whole, name)
    assert (picture(ours, name) == base).all()
    for active in ({"one": 1.0}, BOTH, {}):
        reshard(ours.transformer)  # what lies outside the blocks stays gathered after a call
        edits = edits_of("transformer", adapters, active)
        theirs.set(edits)
        with Collectives() as collectives, torch.inference_mode(bool(active)):
            place.set(edits)
        assert collectives.seen == []
        expect_equal(ours.transformer, whole.transformer)
        made = picture(ours, name)
        assert (made == picture(whole, name)).all() and (made == base).all() == (not active)
    assert place.kept_bytes < theirs.kept_bytes * (0.6 if "resident_blocks" not in options else 1)
    again = MergedWeights(ours.transformer, base=base_in(tiny.build(name, world.tmp_path) / "transformer"))
    reshard(ours.transformer)
    for active in (BOTH, {"two": 1.0}, {}):
        theirs.set(edits_of("transformer", adapters, active))
        again.set(edits_of("transformer", adapters, active))
        expect_equal(ours.transformer, whole.transformer)
        assert again.kept_bytes == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
@on_ranks(2)
def test_a_sharded_merge_has_the_bits_of_a_resident_one(world: World, name: str, dtype: torch.dtype) -> None:
    expect_merges(world, name, dtype)


@pytest.mark.parametrize("option", list(OPTIONS)[1:])
@on_ranks(2)
def test_every_layout_has_the_same_bits(world: World, option: str) -> None:
    expect_merges(world, "flux", torch.float32, **OPTIONS[option])


@pytest.mark.parametrize("name", FAMILIES[1:])
@on_ranks(2)
def test_slices_on_the_host_have_the_same_bits(world: World, name: str) -> None:
    expect_merges(world, name, torch.bfloat16, **OPTIONS["host"])


@pytest.mark.slow
@on_ranks(4)
def test_replicas_of_shards_have_the_same_bits(world: World) -> None:
    expect_merges(world, "flux", torch.bfloat16, replicate=2)


@pytest.mark.parametrize("option", ["rows", "host"])
@pytest.mark.parametrize("name", FAMILIES)
@on_ranks(2)
def test_beside_sharded_layers_the_bits_are_those_beside_whole_ones(world: World, name: str, option: str) -> None:
    whole, adapters = adapted(name, world, torch.bfloat16)
    ours = open_tiny(name, world.tmp_path, torch.bfloat16)
    prime(shard(ours.transformer, build_mesh("cpu"), **OPTIONS[option]))
    theirs = BesideLayers(whole.transformer, world.device)
    place = BesideLayers(ours.transformer, world.device)
    base = picture(whole, name)
    for active in ({"one": 1.0}, BOTH, {}):
        edits = edits_of("transformer", adapters, active)
        theirs.set(edits)
        with Collectives() as collectives, torch.inference_mode(bool(active)):
            place.set(edits)
        assert collectives.seen == []
        made = picture(ours, name)
        assert (made == picture(whole, name)).all() and (made == base).all() == (not active)


@on_ranks(2)
def test_gathered_weights_are_refused_before_anything_is_written(world: World) -> None:
    ours, adapters = adapted("flux", world, torch.float32)
    prime(shard(ours.transformer, build_mesh("cpu")))
    place = MergedWeights(ours.transformer)
    base = picture(ours, "flux")
    with pytest.raises(RuntimeError, match="reshard it before"):
        place.set(edits_of("transformer", adapters, BOTH))
    reshard(ours.transformer)
    place.set(Edits())
    assert (picture(ours, "flux") == base).all()


def test_the_spy_sees_collectives(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with Collectives() as collectives:
            dist.all_reduce(torch.ones(1))
        assert collectives.seen
    finally:
        dist.destroy_process_group()
