"""Offloaded components on the software accelerator: the bits of the CPU, nothing unordered, the memory of the bound."""

import gc
from pathlib import Path
from time import perf_counter

import pytest
import torch
from torch import nn

import offload
from offload import StoreError
from offload.engines import stream
from offload.engines.stream import StreamEngine
from runner.components.groups import Groups
from runner.components.load import load_component
from runner.components.source import Source
from runner.components.whole import load_whole
from runner.config import PlacementConfig
from runner.errors import UserError
from runner.trace.clock import Start
from runner.trace.figures import where
from runner.trace.interval import Interval
from runner.trace.recorder import Details
from tests import tiny
from tests.distributed.placed import call, expect_stock_bits_in_both_scopes, joined, opened, stock_bits
from tests.memory import peak_anonymous_memory
from tests.offload.memory_store import MemoryStore
from tests.offload.offload_models import Stack, example
from tests.offload.test_schedule_faults import ORDERS
from tests.ranks import World, on_ranks
from tests.runner.components import wide_model
from tests.runner.components.wide_model import Wide
from weights import room

# Every component is offloaded so; the DiT keeps the resident blocks.
ROWS = {
    "host": ["rest=host"],
    "host, one at a time": ["rest=host", "window=1"],
    "disk": ["rest=disk", "window=3"],
    "disk, whole": ["rest=disk", "window=all"],
    "disk, some resident": ["rest=disk"],
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("family", ["flux", "wan"])
@on_ranks(1, soft=True)
def test_each_way_of_offloading_gives_the_cpus_bits_in_both_scopes(
    world: World, family: str, path: Path, row: str
) -> None:
    overrides = [f"placement.default.{option}" for option in ROWS[row]]
    if "some resident" in row:
        overrides.append("placement.transformer.resident_blocks=1")
    pipeline = opened(world, path, *overrides)
    expect_stock_bits_in_both_scopes(world, pipeline, family, path, {c.name for c in pipeline.components})
    for component in pipeline.components:
        offloader = offload.offloader_of(component.module)
        assert offloader is not None and isinstance(offloader._engine, StreamEngine)
        assert {t.device for t in component.module.parameters()} == {world.device}
        offloader.store.close()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@on_ranks(1, soft=True)
def test_every_family_gives_the_cpus_bits_resident_and_from_disk(world: World, family: str, path: Path) -> None:
    for overrides in ([], ["placement.default.rest=disk", "placement.vae.rest=host"]):
        pipeline = opened(world, path, *overrides)
        for index in (0, 1):
            assert torch.equal(call(pipeline, family, index), stock_bits(family, path, index)), overrides


@on_ranks(1, 2, soft=True)
def test_ranks_offload_each_to_its_own_device(world: World, paths: dict[str, Path]) -> None:
    pipeline = opened(world, paths["flux"], "placement.default.rest=disk", "placement.transformer.rest=host")
    for index in (world.rank, 2, 2):
        assert torch.equal(call(pipeline, "flux", index), stock_bits("flux", paths["flux"], index))
    assert {t.device for t in pipeline.stock.transformer.parameters()} == {world.device}


@pytest.mark.parametrize("kind", ["page-locked", "staged", "staged in pieces"])
@pytest.mark.parametrize("window", [1, 2, 3, "all"])
@on_ranks(1, soft=True)
def test_each_order_of_blocks_is_right_and_ordered(world: World, window: int, kind: str) -> None:
    torch.set_grad_enabled(False)
    with pytest.MonkeyPatch.context() as patch:
        if kind == "staged in pieces":
            patch.setattr(stream, "STAGING_BYTES", 1024)
        run_each_order(world, window, kind)


def run_each_order(world: World, window: int, kind: str) -> None:
    for order, passes in ORDERS.items():
        plain, model = Stack(), Stack()
        store = memory_store(model, kind)
        offloaded = offload.offload(model, store, device=world.device, window=window, resident_blocks=1)
        x = example().to(world.device)
        for _ in range(2):
            for blocks in passes:
                assert torch.equal(model(x, blocks).cpu(), plain(example(), blocks)), order
            offloaded.end()
            torch.empty(4096, device=world.device)  # takes what the ring had
        offloaded.remove()
        assert torch.equal(model(x).cpu(), plain(example()))
        offload.offload(model, store, device=world.device).remove(torch.device("cpu"))
        assert torch.equal(model(example()), plain(example())), "also back to the CPU"


@on_ranks(1, soft=True)
def test_a_read_that_fails_half_way_leaves_no_copy_under_way(world: World) -> None:
    """The error is told, the ring is freed, and its memory is another's at once."""
    torch.set_grad_enabled(False)
    model = Stack()
    store = MemoryStore(model, views=False)
    store.broken, store.breaks_at = {"blocks.2"}, 1024
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "STAGING_BYTES", 512)
        offloaded = offload.offload(model, store, device=world.device, window=1)  # no other copy's end tells of it
        for _ in range(2):
            with pytest.raises(StoreError, match=r"blocks\.2"):
                model(example().to(world.device))
            offloaded.end()
            gc.collect()  # the error's frames hold the ring's memory
            torch.zeros(offloaded.bytes_of_ring, dtype=torch.uint8, device=world.device)  # takes what the ring had
        store.broken = set()
        assert torch.equal(model(example().to(world.device)).cpu(), Stack()(example()))
        offloaded.remove()


@on_ranks(1, soft=True)
def test_all_components_are_staged_through_two_buffers_of_a_fixed_size(world: World) -> None:
    torch.set_grad_enabled(False)
    engine = offload.engine_for(world.device)
    assert isinstance(engine, StreamEngine)
    for _ in range(2):
        model = wide_stack()
        offload.offload(model, MemoryStore(model, views=False), device=world.device, engine=engine)
        model(example().to(world.device))
    sizes = [staging.buffer.numel() for staging in engine._staging if staging.buffer is not None]
    assert sizes == [stream.STAGING_BYTES] * 2 and sum(sizes) == engine.staging_bytes
    engine.close()


@on_ranks(1, soft=True)
def test_the_device_holds_no_more_than_the_bound(world: World) -> None:
    torch.set_grad_enabled(False)
    model = wide_stack()
    before = torch.accelerator.memory_allocated()
    offloaded = offload.offload(model, MemoryStore(model, views=False), device=world.device)
    x = example().to(world.device)
    torch.accelerator.reset_peak_memory_stats()
    for _ in range(3):
        model(x)
    activations = 2**20
    assert torch.accelerator.max_memory_allocated() - before <= offloaded.bytes_bound + activations
    assert offloaded.bytes_bound < 0.6 * offloaded.num_bytes, "or the test says nothing"
    offloaded.end()
    assert torch.accelerator.memory_allocated() - before <= offloaded.bytes_at_rest + activations / 8


@pytest.fixture
def paths(tiny_root: Path) -> dict[str, Path]:
    return {"flux": tiny.build("flux", tiny_root)}


def memory_store(model: nn.Module, kind: str) -> MemoryStore:
    """Its units in page-locked memory, or read into staging memory."""
    store = MemoryStore(model, views=kind == "page-locked")
    if kind == "page-locked":
        store.bytes = {unit: data.pin_memory() for unit, data in store.bytes.items()}
    return store


def wide_stack() -> Stack:
    torch.manual_seed(0)
    model = Stack(6)
    for block in model.blocks:
        block.up = nn.Linear(8, 1 << 15)
        block.down = nn.Linear(1 << 15, 8)
    return model


@on_ranks(2, soft=True)
def test_room_to_stage_is_asked_for_before_anything_is_loaded(world: World, paths: dict[str, Path]) -> None:
    """128 MiB for two ranks; the tiny pipeline itself would fit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "available_room", lambda root: room.Room(100 * 2**20, "this test"))
        refused = r"the staging of what is offloaded, on 2 rank\(s\), needs 0.12 GiB .* this test leaves 0.10 GiB"
        for rest in ("host", "disk"):
            with pytest.raises(UserError, match=refused):
                opened(world, paths["flux"], f"placement.default.rest={rest}")
        opened(world, paths["flux"])


@on_ranks(2, soft=True)
def test_a_resident_component_goes_up_through_the_staging_buffers(world: World) -> None:
    """Of 320 MiB, the host holds no more than two pieces of 32 MiB."""
    folder = world.tmp_path / "wide"
    if world.rank == 0:
        wide_model.write(folder)
    ranks = joined(world)
    ranks.gather(None)
    with peak_anonymous_memory() as peak:
        module, loading = load_component(
            Source(folder.name, Wide, folder), torch.float32, PlacementConfig(), ranks, Groups()
        )
    assert loading.how == "weight by weight"
    assert {parameter.device for parameter in module.parameters()} == {world.device}
    assert [float(parameter[7, 7].cpu()) for parameter in module.parameters()] == [1, 2, 3, 4, 5]
    assert peak() < 16 * 2**20, "the staging buffers are the accelerator's page-locked memory"
    with peak_anonymous_memory() as peak:
        load_whole(Source(folder.name, Wide, folder), torch.float32).to(world.device)
    assert peak() > 300 * 2**20, "the library's way, for comparison"


@on_ranks(2, soft=True)
def test_a_component_that_the_device_cannot_hold_is_refused_on_all_ranks(world: World) -> None:
    folder = world.tmp_path / "wide"
    if world.rank == 0:
        wide_model.write(folder)
    ranks = joined(world)
    ranks.gather(None)
    free, capacity = torch.accelerator.get_memory_info(world.device)
    torch.ops.soft.set_capacity(world.rank, capacity - free + 300 * 2**20)
    before = torch.accelerator.memory_allocated()
    with pytest.raises(UserError, match=r"wide \(rest: device\) needs 0.31 GiB of soft:0, which has 0.29 GiB left"):
        load_component(Source(folder.name, Wide, folder), torch.float32, PlacementConfig(), ranks, Groups())
    assert torch.accelerator.memory_allocated() == before
    torch.ops.soft.set_capacity(world.rank, capacity)


@on_ranks(1, soft=True)
def test_what_a_device_did_is_told_by_its_events_after_the_request(world: World, paths: dict[str, Path]) -> None:
    """Copies are on their stream, waits and blocks on that of the compute; nothing is awaited to know when."""
    pipeline = opened(world, paths["flux"], "placement.transformer.rest=host")
    kept: list[Interval] = []
    began = perf_counter()
    pipeline.trace(Details(Start(began, 0.0), kept.extend))
    call(pipeline, "flux", 0)
    assert not [one for one in kept if one.name == "block"], "the device was not asked yet"
    pipeline.recorder.settle()
    seconds = perf_counter() - began
    blocks = [one for one in kept if one.name == "block" and one.component == "transformer"]
    copies = [one for one in kept if one.name == "prefetch"]
    assert len(blocks) == 6 * 3 and len(copies) >= 6 * 3
    assert all(0 <= one.begin <= one.end <= seconds + 0.001 for one in kept)
    calls = [one for one in kept if one.name == "component" and one.component == "transformer"]
    assert all(any(call.begin <= one.begin and one.end <= call.end + 1e-5 for call in calls) for one in blocks)
    assert sum(one.seconds for one in blocks) > 0.3 * sum(one.seconds for one in calls), "not of no length"
    figures = where(pipeline.recorder.sums, seconds).components["denoise", "transformer", False]
    assert figures.transfer > 0 and figures.num_bytes > 0 and figures.compute > 0
