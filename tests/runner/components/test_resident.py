"""A component that stays on its device comes weight by weight: the library's bits, and no second copy on the way."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from runner.components.directory import read_directory
from runner.components.groups import Groups
from runner.components.load import load_component
from runner.components.source import Source
from runner.components.whole import load_whole
from runner.config import PlacementConfig, Rest, Share
from runner.errors import UserError
from runner.world import World
from sharding import build_mesh
from tests import tiny
from tests.distributed.placed import joined
from tests.memory import peak_anonymous_memory
from tests.ranks import World as TestWorld
from tests.ranks import on_ranks
from tests.runner.components.wide_model import WEIGHT_BYTES, Wide, write
from weights import room
from weights.agreement import node_group

ALONE = World(0, 1, torch.device("cpu"))
MIB = 2**20


def load(cls: Any, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, str]:
    module, loading = load_component(Source(folder.name, cls, folder), dtype, PlacementConfig(), ALONE, Groups())
    return module, loading.how


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_component_is_the_librarys_in_memory_of_its_own(family: str, dtype: torch.dtype, tiny_root: Path) -> None:
    for source in read_directory(tiny.build(family, tiny_root)).sources.values():
        if not source.is_module:
            continue
        name, expected = source.name, load_whole(source, dtype)
        module, how = load(source.cls, source.folder, dtype)
        assert how == "weight by weight" and not module.training
        for kind in ("named_parameters", "named_buffers"):
            found, wanted = dict(getattr(module, kind)()), dict(getattr(expected, kind)())
            assert list(found) == list(wanted), (name, kind)
            for key, tensor in found.items():
                assert torch.equal(tensor, wanted[key]) and tensor.dtype == wanted[key].dtype, (name, key)
                assert tensor.requires_grad == wanted[key].requires_grad and type(tensor) is type(wanted[key])
                assert tensor.stride() == wanted[key].stride() and tensor.data_ptr() % 64 == 0, (name, key)
        tensors = {id(t): t for t in (*module.parameters(), *module.buffers()) if t.numel()}.values()
        assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors), "none is in another's memory"


def test_nothing_is_in_memory_beside_the_weights(tmp_path: Path) -> None:
    folder, copy = write(tmp_path), 5 * WEIGHT_BYTES
    gc.collect()  # what other tests left would be freed meanwhile
    with peak_anonymous_memory() as peak:
        module, _ = load(Wide, folder)
    assert [p[0, 0].item() for p in module.parameters()] == [1, 2, 3, 4, 5]
    assert 0.9 * copy <= peak() <= copy + 8 * MIB
    del module
    with peak_anonymous_memory() as peak:
        load(Wide, folder, torch.bfloat16)
    assert peak() <= copy // 2 + 72 * MIB, "what is converted is read by 32 MiB"


def test_only_the_library_makes_of_a_checkpoint_what_is_not_there_under_its_name(tmp_path: Path) -> None:
    file = write(tmp_path, num_blocks=1) / "diffusion_pytorch_model.safetensors"
    stored = load_file(file)
    stored["strange.weight"] = stored.pop("out.weight")
    save_file(stored, file)
    with pytest.raises(UserError, match=r"missing keys in the weights: out\.weight"):
        load(Wide, tmp_path)


def test_a_file_that_is_cut_short_is_the_users_error(tmp_path: Path) -> None:
    file = write(tmp_path, num_blocks=1) / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged or cut short"):
        load(Wide, tmp_path)


@pytest.mark.parametrize(
    ("placement", "available", "message"),
    [
        (PlacementConfig(), 600, r"\(rest: device, on 2 rank\(s\)\) needs 0.62 GiB .* share: shard fits \(0.31 GiB\)"),
        (PlacementConfig(), 300, r".* nothing smaller fits \(share: shard needs 0.31 GiB"),
        (
            PlacementConfig(share=Share.shard),
            300,
            r"\(share: shard, rest: device\) needs 0.31 GiB",
        ),
        (PlacementConfig(share=Share.shard, rest=Rest.host), 300, r"\(share: shard, rest: host\) .* start fewer ranks"),
        (PlacementConfig(rest=Rest.host), 300, r"\(rest: host\) needs 0.31 GiB .* rest: disk fits \(0.12 GiB\)"),
    ],
)
@on_ranks(2)
def test_what_does_not_fit_is_refused_on_all_ranks_before_it_is_taken(
    world: TestWorld, placement: PlacementConfig, available: int, message: str
) -> None:
    """One copy takes 320 MiB."""
    if world.device.type != "cpu":
        pytest.skip("the host's memory is not the device's")
    folder = world.tmp_path / "wide"
    if world.rank == 0:
        write(folder)
    ranks, groups = joined(world), Groups(build_mesh("cpu"), node=node_group())
    ranks.gather(None)
    with pytest.MonkeyPatch.context() as patch, peak_anonymous_memory() as peak:
        patch.setattr(room, "available_room", lambda root: room.Room(available * MIB, "this test"))
        with pytest.raises(UserError, match=r"^placement\.wide: wide " + message):
            load_component(Source(folder.name, Wide, folder), torch.float32, placement, ranks, groups)
    assert peak() < 8 * MIB
