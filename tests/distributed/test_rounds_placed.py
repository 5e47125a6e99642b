"""Rounds over placed components: shared out over a team's ranks, or in one pass over weights that move."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import offload
from runner.components.resolver import resolve
from runner.config import Leave
from runner.pipeline.pipeline import Pipeline
from tests import tiny
from tests.distributed.placed import call, call_together, opened, request_of, stock_bits
from tests.ranks import World, on_ranks

ROWS = {
    "whole": [],
    "disk": ["placement.default.rest=disk"],
    "host": ["placement.default.rest=host", "placement.default.window=1"],
    "shard": ["placement.default.share=shard"],
    "shard, host": ["placement.default.share=shard", "placement.default.rest=host"],
    "shard, disk": ["placement.default.share=shard", "placement.default.rest=disk"],
}
TWICE = ("qwenimage", "wan", "wan22")  # call their transformer with the prompt, and without


@pytest.fixture
def path(tiny_root: Path, family: str) -> Path:
    return tiny.build(family, tiny_root)


def expect_stock_bits(pipeline: Pipeline, family: str, path: Path, first: int) -> None:
    """In both scopes, one by one and two together, once the first one told what calls there are."""
    assert torch.equal(call(pipeline, family, first), stock_bits(family, path, first)), "the first one"
    assert pipeline.rounds is not None
    pipeline.rounds.figures.components.clear()
    decisions = {leave: resolve(pipeline.components, leave) for leave in Leave}
    for leave in (Leave.weights, Leave.component):
        pipeline.decisions = decisions[leave]
        for index in (first, first + 1):
            assert torch.equal(call(pipeline, family, index), stock_bits(family, path, index)), (leave, index)
        made = call_together(pipeline, [request_of(family, first + i) for i in range(2)])
        for i, picture in enumerate(made):
            assert torch.equal(picture, stock_bits(family, path, first + i)), (leave, i, "together")
    for component in pipeline.components:
        for name, tensor in (*component.module.named_parameters(), *component.module.named_buffers()):
            assert not tensor.is_inference(), f"{component.name}.{name}"


def widths(pipeline: Pipeline, name: str = "transformer") -> set[int]:
    assert pipeline.rounds is not None
    figures = pipeline.rounds.figures.components[name]
    assert figures.shared_out and not figures.serial, figures
    return set(figures.widths)


@pytest.mark.parametrize("family", TWICE)
@pytest.mark.parametrize("row", ["disk", "host", "shard"])
@on_ranks(1)
def test_alone_the_calls_of_a_round_share_a_pass(world: World, family: str, path: Path, row: str) -> None:
    pipeline = opened(world, path, *ROWS[row])
    expect_stock_bits(pipeline, family, path, 1)
    assert widths(pipeline) == {2}
    pipeline.close()


@pytest.mark.parametrize("family", ["qwenimage"])
@on_ranks(1)
def test_guidance_costs_one_pass_over_the_weights(world: World, path: Path) -> None:
    pipeline = opened(world, path, "placement.transformer.rest=disk")
    [mover] = [o for c in pipeline.components if (o := offload.offloader_of(c.module)) is not None]
    for _ in range(2):  # the first one tells what calls there are, the second in which order blocks run then
        call(pipeline, "qwenimage", 0)

    def crossed(guided: bool, number: int = 1) -> int:
        before = mover.traffic.num_bytes
        request = request_of("qwenimage", 0, **({} if guided else {"true_cfg_scale": 1.0}))
        call_together(pipeline, [request] * number) if number > 1 else pipeline(request)
        return mover.traffic.num_bytes - before

    one = crossed(guided=False)
    assert (crossed(guided=True), crossed(guided=True)) == (one, one) and one, "two calls a step, and one"
    assert crossed(guided=True, number=3) == one, "three requests, and six calls a step"


@pytest.mark.parametrize("family", ["qwenimage"])
@on_ranks(2)
def test_guidance_costs_one_gather_of_each_block(world: World, path: Path) -> None:
    """Of two teams of one rank, that share the weights and make requests of their own."""
    pipeline = opened(world, path, "placement.transformer.share=shard")
    call(pipeline, "qwenimage", world.rank)

    def gathers(**differs: Any) -> int:
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            pipeline(request_of("qwenimage", world.rank, **differs))
        events = trace.key_averages()
        return sum(e.count for e in events if e.key.startswith("FSDP::all_gather (transformer_blocks.0"))

    assert gathers() == gathers(true_cfg_scale=1.0) > 0


@pytest.mark.parametrize("family", TWICE)
@pytest.mark.parametrize("row", ROWS)
@on_ranks(2)
def test_a_team_shares_out_the_calls(world: World, family: str, path: Path, row: str) -> None:
    pipeline = opened(world, path, "mesh.guidance=2", *ROWS[row])
    expect_stock_bits(pipeline, family, path, 1)
    assert widths(pipeline) == {2}
    pipeline.close()


@pytest.mark.parametrize("family", ["qwenimage"])
@on_ranks(2)
def test_each_rank_reads_half_as_much(world: World, path: Path) -> None:
    read = {}
    for guidance in (1, 2):
        pipeline = opened(world, path, f"mesh.guidance={guidance}", "placement.transformer.rest=disk")
        [mover] = [o for c in pipeline.components if (o := offload.offloader_of(c.module)) is not None]
        assert pipeline.rounds is not None
        if guidance == 1:  # as it was without rounds: two passes a step
            pipeline.rounds.close()
            pipeline.rounds = None
        for _ in range(2):
            call(pipeline, "qwenimage", 0)
        before = mover.traffic.num_bytes
        call(pipeline, "qwenimage", 0)
        read[guidance] = mover.traffic.num_bytes - before
    assert read[2] * 2 == read[1] > 0
