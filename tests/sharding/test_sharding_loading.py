"""Each rank reads only its slices, gets the library's bits, and every rank raises what any rank finds wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from sharding import (
    CheckpointError,
    KeysDiffer,
    LoadReport,
    build_mesh,
    bytes_per_rank,
    load_sharded,
    prime,
    set_dtype,
    shard,
)
from tests.memory import peak_anonymous_memory
from tests.ranks import World, on_ranks
from tests.sharding.sharding_models import build, call, wan_dtype
from weights.checkpoint import Checkpoint, Library


def saved(name: str, world: World, max_shard_size: str = "10GB") -> Path:
    """A component directory with random weights, written by rank 0 with the library."""
    directory = world.tmp_path / name
    if world.rank == 0:
        build(name).float().save_pretrained(directory, max_shard_size=max_shard_size)
    dist.barrier()
    return directory


def on_meta(name: str) -> nn.Module:
    """The module that `saved` wrote, on meta, tied as the library ties it."""
    real = build(name)
    with accelerate.init_empty_weights(include_buffers=False):
        model = type(real)(real.config) if hasattr(real, "tie_weights") else type(real).from_config(real.config)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model.eval()


def loaded(name: str, directory: Path, world: World, **options: Any) -> tuple[nn.Module, LoadReport]:
    model = on_meta(name)
    if name == "wan":
        set_dtype(model, wan_dtype)
    shard(model, build_mesh(world.device.type), **options)
    library = Library.transformers if hasattr(model, "tie_weights") else Library.diffusers
    to_host = options.get("offload_to_host", False)
    report = load_sharded(model, Checkpoint(directory, library), device=world.device, offload_to_host=to_host)
    prime(model)
    return model, report


def expect_library_bits(name: str, model: nn.Module, world: World) -> None:
    """`build` makes what the file holds, and the tests in test_sharding_output.py compare it with the sharded one."""
    with torch.inference_mode():
        expected = call(name, build(name, world.device), world.device)
        for output, wanted in zip(call(name, model, world.device), expected, strict=True):
            torch.testing.assert_close(output, wanted, rtol=0, atol=0)
    assert not any(tensor.is_meta or tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("name", ["flux", "sd3", "dit", "wan", "t5", "clip", "vae"])
@on_ranks(1, 2)
def test_a_loaded_module_gives_the_bits_of_the_saved_one(world: World, name: str) -> None:
    model, report = loaded(name, saved(name, world), world)
    expect_library_bits(name, model, world)
    assert report.tensors == len({id(t) for t in model.state_dict(keep_vars=True).values()})


def on_dim_1(parameter: nn.Parameter) -> Shard | None:
    return Shard(1) if parameter.ndim > 1 and parameter.shape[1] % 2 == 0 else None


OPTIONS: dict[str, dict[str, Any]] = {
    "dim 1": {"shard_placement_fn": on_dim_1},
    "host": {"offload_to_host": True},
    "resident": {"resident_blocks": 2},
}


@pytest.mark.parametrize("option", OPTIONS)
@on_ranks(2)
def test_loading_follows_the_placement(world: World, option: str) -> None:
    model, _ = loaded("flux", saved("flux", world), world, **OPTIONS[option])
    expect_library_bits("flux", model, world)


@on_ranks(2)
def test_a_checkpoint_of_several_files_is_read_through_its_index(world: World) -> None:
    directory = saved("flux", world, max_shard_size="100KB")
    assert len(list(directory.glob("*.safetensors"))) > 2
    model, _ = loaded("flux", directory, world)
    expect_library_bits("flux", model, world)


@on_ranks(2)
def test_renamed_keys_and_variants_are_found(world: World) -> None:
    directory = saved("dit", world)
    plain = directory / "diffusion_pytorch_model.safetensors"
    if world.rank == 0:
        weights = load_file(plain)
        plain.unlink()
        save_file({f"model.{k}": v for k, v in weights.items()}, directory / "diffusion_pytorch_model.fp16.safetensors")
    dist.barrier()
    model = shard(on_meta("dit"), build_mesh(world.device.type))
    checkpoint = Checkpoint(directory, variant="fp16", rename=lambda key: key.removeprefix("model."))
    load_sharded(model, checkpoint, device=world.device)
    prime(model)
    expect_library_bits("dit", model, world)


# What a rank reads and holds


class Wide(nn.Module):
    """128 MiB in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(2048, 2048, bias=False) for _ in range(8))


@on_ranks(2)
def test_a_rank_reads_and_holds_only_its_share(world: World) -> None:
    if world.rank == 0:
        save_file(Wide().state_dict(), world.tmp_path / "diffusion_pytorch_model.safetensors")
    dist.barrier()
    with accelerate.init_empty_weights():
        model = Wide()
    set_dtype(model, lambda _: torch.bfloat16)
    shard(model, build_mesh(world.device.type))
    with peak_anonymous_memory() as peak:
        report = load_sharded(model, Checkpoint(world.tmp_path), device=world.device)

    stored = 8 * 2048 * 2048 * 4
    assert report.bytes_read == stored // 2
    assert bytes_per_rank(model) == stored // 4
    assert peak() <= stored // 4 * 1.1 + 16 * 2**20


@on_ranks(2)
def test_no_view_of_a_mapped_file_is_kept(world: World) -> None:
    directory = saved("flux", world)
    model, _ = loaded("flux", directory, world, resident_blocks=1)
    assert str(directory) not in Path("/proc/self/maps").read_text()
    for parameter in model.parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        assert local.data_ptr() % 64 == 0


# What is wrong is raised on every rank, before any weight is read


def _drop(directory: Path) -> None:
    rewrite(directory, lambda weights: weights.pop("proj_out.bias"))


def _rename(directory: Path) -> None:
    rewrite(directory, lambda weights: weights.update(stranger=weights.pop("proj_out.bias")))


def _reshape(directory: Path) -> None:
    rewrite(directory, lambda weights: weights.update({"proj_out.bias": torch.zeros(3)}))


def _truncate(directory: Path) -> None:
    file = directory / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _pickle(directory: Path) -> None:
    file = directory / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def _promise_more(directory: Path) -> None:
    weight_map = {"absent.weight": "diffusion_pytorch_model.safetensors"}
    index = directory / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _store_twice(directory: Path) -> None:
    file = directory / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file), directory / "more.safetensors")
    weight_map = {"proj_out.bias": file.name, "proj_out.weight": "more.safetensors"}
    index = directory / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = directory / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


DAMAGE: dict[str, tuple[Callable[[Path], None], type[CheckpointError], str]] = {
    "missing": (_drop, KeysDiffer, r"1 missing \(proj_out.bias\)"),
    "missing, and extra": (_rename, KeysDiffer, r"1 missing \(proj_out.bias\) and 1 extra \(stranger\)"),
    "misshapen": (_reshape, CheckpointError, r"proj_out.bias is stored as \[3\], the module has \[4\]"),
    "truncated": (_truncate, CheckpointError, r"is damaged or cut short"),
    "pickle only": (
        _pickle,
        CheckpointError,
        r"diffusion_pytorch_model.bin is a pickle, which can run code.*convert it",
    ),
    "false index": (_promise_more, CheckpointError, r"says that .* holds absent.weight, and it does not"),
    "stored twice": (_store_twice, CheckpointError, r"stores .* twice: as .* in .* and as .* in more.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@on_ranks(2)
def test_a_bad_checkpoint_is_refused_on_every_rank(world: World, damage: str) -> None:
    """Only the last rank sees the damage, as with a stale copy on one node; all raise the same."""
    apply, error, message = DAMAGE[damage]
    directory = world.tmp_path / f"rank{world.rank}" / "flux"
    build("flux").save_pretrained(directory)
    if world.rank == world.size - 1:
        apply(directory)
    model = shard(on_meta("flux"), build_mesh(world.device.type))

    with pytest.raises(error, match=message) as raised:
        load_sharded(model, Checkpoint(directory), device=world.device)

    texts: list[Any] = [None] * world.size
    dist.all_gather_object(texts, str(raised.value))
    assert set(texts) == {str(raised.value)}
    assert all(parameter.is_meta for parameter in model.parameters())


@on_ranks(2)
def test_differing_keys_are_listed(world: World) -> None:
    directory = saved("flux", world)
    model = shard(on_meta("flux"), build_mesh(world.device.type))
    with pytest.raises(KeysDiffer) as raised:
        renamed = Checkpoint(directory, rename=lambda key: key.replace("x_embedder.", "patchify."))
        load_sharded(model, renamed, device=world.device)
    assert raised.value.missing == ("x_embedder.bias", "x_embedder.weight")
    assert raised.value.extra == ("x_embedder.bias", "x_embedder.weight")
    with pytest.raises(CheckpointError, match=r"stores proj_out.* twice: as .* and as"):
        renamed = Checkpoint(directory, rename=lambda key: key.replace("x_embedder", "proj_out"))
        load_sharded(model, renamed, device=world.device)


@on_ranks(1)
def test_a_module_that_cannot_be_filled_is_refused(world: World) -> None:
    directory = saved("sd3", world)
    mesh = build_mesh(world.device.type)
    with pytest.raises(CheckpointError, match="has weights already"):
        load_sharded(shard(build("sd3", world.device), mesh), Checkpoint(directory), device=world.device)

    with accelerate.init_empty_weights(include_buffers=False):
        model = nn.Linear(2, 2)
    model.register_buffer("table", torch.empty(2, device="meta"), persistent=False)
    save_file(
        {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, world.tmp_path / "diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"meta buffers that no file stores \(table\)"):
        load_sharded(shard(model, mesh), Checkpoint(world.tmp_path), device=world.device)
