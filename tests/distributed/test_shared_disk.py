"""Weights on disk that ranks share: each reads its part of a block, and they give each other what they read."""

import dataclasses
import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import offload
from runner.calls.lockstep import TornApart
from runner.components.resolver import ExecutionMode, resolve
from runner.config import Leave
from tests import tiny
from tests.distributed.placed import (
    call,
    component_names,
    expect_stock_bits_in_both_scopes,
    expect_stock_bits_together,
    joined,
    opened,
    request_of,
    stock_bits,
)
from tests.lora.lora_files import save_adapter
from tests.ranks import World, on_ranks
from tests.resuming import Bench

SHARED = ["placement.default.share=shard", "placement.default.rest=disk"]
FAST = {"flux", "wan22", "dit"}
FAMILIES = [family if family in FAST else pytest.param(family, marks=pytest.mark.slow) for family in tiny.FAMILIES]


@pytest.fixture
def path(tiny_root: Path, family: str) -> Path:
    return tiny.build(family, tiny_root)


@pytest.mark.parametrize("family", FAMILIES)
@on_ranks(1, 2, 3)
def test_what_ranks_read_together_gives_the_stock_bits_in_both_scopes(world: World, family: str, path: Path) -> None:
    expect_stock_bits_together(opened(world, path, *SHARED), family, path, world.rank, (3,))
    pipeline = opened(world, path, *SHARED)
    expect_stock_bits_in_both_scopes(world, pipeline, family, path, set(component_names(family, path, "all")))
    for component in pipeline.components:
        if world.size > 1:
            assert str(component.placement) == f"shard {world.size}, disk" and component.is_sharded
        offloader = offload.offloader_of(component.module)
        assert offloader is not None and offloader.bytes_on_device == offloader.bytes_at_rest
        assert offloader.bytes_on_device <= offloader.bytes_bound


@pytest.mark.parametrize("family", ["flux"])
@on_ranks(4)
def test_two_copies_are_read_apart_from_each_other(world: World, path: Path) -> None:
    pipeline = opened(world, path, *SHARED, "mesh.shard=2", "mesh.replicate=2")
    assert str(pipeline.components[0].placement) == "shard 2 x 2, disk"
    for index in range(1 + world.rank // 2):  # the copies need not keep in step
        assert torch.equal(call(pipeline, "flux", index), stock_bits("flux", path, index))


@pytest.mark.parametrize("family", ["flux"])
@on_ranks(2)
def test_each_rank_reads_its_part_and_no_more(world: World, path: Path) -> None:
    pipeline = opened(world, path, *SHARED)
    offloader = offload.offloader_of(pipeline.stock.transformer)
    assert offloader is not None and isinstance(offloader.store, offload.SharedDiskStore)
    before, crossed = offloader.store.bytes_read, offloader.traffic.num_bytes
    call(pipeline, "flux", 0)
    read, crossed = offloader.store.bytes_read - before, offloader.traffic.num_bytes - crossed
    outside = offloader.num_bytes - sum(unit.num_bytes for unit in offloader._streamed)
    units = 3 * 6 + 8
    assert abs(read - (crossed + outside) / 2) <= units * 128, "but for where parts end"


@contextmanager
def slow_disk(seconds_per_byte: float) -> Iterator[None]:
    read = offload.DiskStore.read

    def slow(self: Any, unit: str, out: torch.Tensor, start: int = 0) -> None:
        time.sleep(out.numel() * seconds_per_byte)
        read(self, unit, out, start)

    offload.DiskStore.read = slow  # type: ignore[method-assign]
    try:
        yield
    finally:
        offload.DiskStore.read = read  # type: ignore[method-assign]


@pytest.mark.parametrize("family", ["flux"])
@on_ranks(2)
def test_two_ranks_wait_half_as_long_for_a_slow_disk(world: World, path: Path) -> None:
    seconds = {}
    for share in ("replicate", "shard"):
        pipeline = opened(world, path, f"placement.transformer.share={share}", "placement.transformer.rest=disk")
        with slow_disk(1e-6):  # 1 MB/s: 2 s for three passes
            start = time.monotonic()
            call(pipeline, "flux", 0)
            seconds[share] = time.monotonic() - start
    assert seconds["shard"] < 0.75 * seconds["replicate"], seconds


@pytest.mark.parametrize("family", ["flux"])
@on_ranks(2)
def test_adapters_over_weights_that_are_read_together(world: World, path: Path) -> None:
    if world.rank == 0:
        save_adapter(tiny.load_stock(path), world.tmp_path / "ink", seed=3)
    joined(world).gather(None)
    for mode in ("merge", "dynamic"):
        words = [f"lora.mode={mode}", f"lora.adapters=[{{path: {world.tmp_path / 'ink'}, name: ink}}]"]
        shared = opened(world, path, "placement.transformer.share=shard", "placement.transformer.rest=disk", *words)
        alone = opened(world, path, "placement.transformer.rest=disk", *words)
        request = dataclasses.replace(request_of("flux", world.rank), lora={"ink": 0.8})
        assert torch.equal(torch.as_tensor(shared(request)[0][0]), torch.as_tensor(alone(request)[0][0])), mode
        assert torch.equal(call(shared, "flux", 0), stock_bits("flux", path, 0))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flux"])
@pytest.mark.parametrize("mode", ["merge", "dynamic"])
@on_ranks(2)
def test_a_request_with_an_adapter_goes_on_inside_in_both_scopes(world: World, path: Path, mode: str) -> None:
    """Killed at a call in one scope, it goes on in the other."""
    if world.rank == 0:
        save_adapter(tiny.load_stock(path), world.tmp_path / "ink", seed=3)
    joined(world).gather(None)
    words = [f"lora.mode={mode}", f"lora.adapters=[{{path: {world.tmp_path / 'ink'}, name: ink}}]"]
    folder = world.tmp_path / f"rank{world.rank}"
    folder.mkdir()
    bench, alone = Bench(opened(world, path, *SHARED, *words), folder), opened(world, path, *words)
    decisions = {leave: resolve(bench.pipeline.components, leave) for leave in (Leave.weights, Leave.component)}
    plain = request_of("flux", world.rank)
    steps = plain.call["num_inference_steps"]
    for name, lora, request in (
        ("plain", None, plain),
        ("ink", {"ink": 0.8}, dataclasses.replace(plain, lora={"ink": 0.8})),
    ):
        expected = stock_bits("flux", path, world.rank) if lora is None else torch.as_tensor(alone(request)[0][0])
        for begun, goes_on in ((Leave.weights, Leave.component), (Leave.component, Leave.weights)):
            whole = f"{name} {begun}"
            bench.pipeline.decisions = decisions[begun]
            made, computed = bench.make(request, whole)
            assert torch.equal(made, expected) and computed == steps, whole
            bench.pipeline.decisions = decisions[goes_on]
            for killed_at in (0, 2, steps):
                made, computed = bench.make(request, bench.cut(whole, killed_at, torn=50))
                assert torch.equal(made, expected) and computed == steps - killed_at, (whole, killed_at)
    assert not bench.said


@pytest.mark.parametrize("family", ["flux"])
@on_ranks(2)
def test_what_one_rank_cannot_read_ends_the_job_on_all(world: World, path: Path) -> None:
    pipeline = opened(world, path, "placement.transformer.share=shard", "placement.transformer.rest=disk")
    assert pipeline.decisions["transformer"].mode is ExecutionMode.NORMAL
    assert "read by 2 ranks together" in pipeline.decisions["transformer"].reason
    read = offload.DiskStore.read

    @functools.wraps(read)
    def broken(self: Any, unit: str, out: torch.Tensor, start: int = 0) -> None:
        if world.rank == 1 and unit == "single_transformer_blocks.1":
            raise offload.StoreError("file: gone")
        read(self, unit, out, start)

    offload.DiskStore.read = broken  # type: ignore[method-assign]
    try:
        with pytest.raises(TornApart, match="file: gone" if world.rank == 1 else "rank 1 cannot read its part"):
            call(pipeline, "flux", 0)
    finally:
        offload.DiskStore.read = read  # type: ignore[method-assign]
