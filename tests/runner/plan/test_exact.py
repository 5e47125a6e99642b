"""What a plan says of weights is exact to the byte, in each placement: read off live components, and off the fake
backend where there are more ranks than a machine has."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import offload
import sharding
from runner.components.component import METHODS, Component
from runner.components.directory import read_directory
from runner.components.groups import build_groups
from runner.components.load import empty, load_component
from runner.components.stages import components_of
from runner.config import MeshConfig, PlacementConfig, Rest, RunConfig, Share
from runner.plan.placed import Placed, placed
from runner.plan.sizes import Sizes, sizes_of
from tests import tiny
from tests.distributed.placed import joined
from tests.ranks import World as TestWorld
from tests.ranks import on_ranks
from weights.modes import normal_mode

NINE = {
    "device": PlacementConfig(),
    "host": PlacementConfig(rest=Rest.host),
    "disk": PlacementConfig(rest=Rest.disk, window=1),
    "host, one stays": PlacementConfig(rest=Rest.host, resident_blocks=1),
    "disk, all": PlacementConfig(rest=Rest.disk, window="all"),
    "shard": PlacementConfig(share=Share.shard),
    "shard, one stays": PlacementConfig(share=Share.shard, resident_blocks=1),
    "shard, host": PlacementConfig(share=Share.shard, rest=Rest.host),
    "shard, disk": PlacementConfig(share=Share.shard, rest=Rest.disk),
}
DTYPES = {"flux": torch.float32, "wan": torch.bfloat16}  # Wan keeps some weights in fp32 beside


@pytest.mark.parametrize("family", list(DTYPES))
@on_ranks(1, 2)
def test_the_bytes_of_weights_are_those_of_the_live_component(world: TestWorld, family: str) -> None:
    """Two ranks cut the same slices, and map one store."""
    ranks = joined(world)
    if world.rank == 0:  # on others, transformers writes nothing
        tiny.build(family, world.tmp_path)
    ranks.gather(None)
    directory = read_directory(world.tmp_path / family)
    for name, placement in NINE.items():
        for module in directory.modules:
            config = RunConfig(placement={"default": placement}, mesh=MeshConfig())
            source = directory.sources[module]
            sizes = sizes_of(Component(module, empty(source, DTYPES[family]), ""))
            if placement.resident_blocks > len(sizes.blocks):
                continue
            groups = build_groups(config, [module], ranks)
            live, _ = load_component(source, DTYPES[family], placement, ranks, groups)
            found = placed(sizes, placement, world.size if placement.share is Share.shard else 1)
            _check(live, found, placement, f"{family}.{module}: {name}, rank {world.rank}")
            if groups.engine is not None:
                groups.engine.close()


def _check(live: nn.Module, found: Placed, placement: PlacementConfig, where: str) -> None:
    offloader = offload.offloader_of(live)
    if offloader is None:
        at_rest, on_host = _storages(live, placement)
        assert (found.at_rest, found.slices) == (at_rest, on_host), where
        if isinstance(live, FSDPModule):
            with normal_mode():
                sharding.unshard(live)
            assert found.outside == _gathered(live), where
            sharding.reshard(live)
        return
    assert found.at_rest == offloader.bytes_at_rest == offloader.bytes_on_device, where
    offloader.begin()
    assert found.at_rest + found.in_stage == offloader.bytes_on_device == offloader.bytes_bound, where
    offloader.end()
    store = offloader.store
    assert found.shared == (store._memory.bytes.numel() if isinstance(store, offload.HostStore) else 0), where


def _storages(live: nn.Module, placement: PlacementConfig) -> tuple[int, int]:
    """Bytes that the allocator handed out for a component's tensors; those of slices that rest on the host apart."""
    sizes: dict[int, int] = {}
    slices: dict[int, int] = {}
    for tensor in (*live.parameters(), *live.buffers()):
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        on_host = isinstance(tensor, DTensor) and placement.rest is Rest.host
        storage = local.untyped_storage()
        (slices if on_host else sizes)[storage._cdata] = storage.nbytes()
    return sum(sizes.values()), sum(slices.values())


def _gathered(live: FSDPModule) -> int:
    """Of the root's own weights, now."""
    return sum(_outputs(live))


def _outputs(live: FSDPModule) -> Iterator[int]:
    for group in live._get_fsdp_state()._fsdp_param_groups:
        for parameter in group.fsdp_params:
            yield from (tensor.untyped_storage().nbytes() for tensor in parameter.all_gather_outputs)


@pytest.mark.parametrize("ranks", [3, 64, 1024])
def test_slices_of_many_ranks_are_those_of_the_fake_backend(ranks: int, tiny_root: Path) -> None:
    directory = read_directory(tiny.build("flux", tiny_root))
    for name in directory.modules:
        module = empty(directory.sources[name], torch.bfloat16)
        sizes = sizes_of(Component(name, module, ""))
        found = placed(sizes, PlacementConfig(share=Share.shard), ranks)
        with sharding.fake_world(ranks):
            mesh = sharding.build_mesh("cpu", shard=ranks)
            laid_out = sharding.layout(sharding.shard(module, mesh, forward_methods=METHODS))
        assert found.at_rest == laid_out.at_rest, name


def test_what_does_not_move_is_what_components_say(tiny_root: Path) -> None:
    """The stages and the order of the plan are those of the pipeline."""
    pipeline = tiny.load_stock(tiny.build("wan22", tiny_root))
    live = components_of(pipeline)
    directory = read_directory(tiny.build("wan22", tiny_root))
    sizes: list[Sizes] = [
        sizes_of(replace(one, module=empty(directory.sources[one.name], torch.float32))) for one in live
    ]
    assert [one.stage for one in sizes] == ["encode", "denoise", "denoise", "decode"]
    assert [one.parameters for one in sizes] == [sum(p.numel() for p in one.module.parameters()) for one in live]
