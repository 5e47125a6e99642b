"""mesh.context: pictures whose tokens ranks share out, in each placement, with adapters, in groups, with guidance."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from runner.calls.lockstep import TornApart
from runner.components.resolver import ExecutionMode
from runner.config import load_config
from runner.errors import UserError
from runner.job.results import Failed
from runner.pipeline.pipeline import Pipeline
from runner.run import run
from tests import tiny
from tests.census.arms import write_case
from tests.census.cases import CASES
from tests.distributed.placed import call, call_together, joined, opened, request_of, run_prompts, stock_bits
from tests.distributed.teams import failing, prompts_of
from tests.distributed.test_context_forwards import assert_alike, difference
from tests.lora.lora_files import save_adapter
from tests.ranks import World, on_ranks
from tests.resuming import Bench
from tests.resuming import request_of as resumed_request_of
from tests.resuming import stock_bits as resumed_stock_bits

FAMILIES = ("flux", "qwenimage", "wan")
PLACED = {
    "resident": [],
    "sharded": ["share=shard"],
    "sharded on the host": ["share=shard", "rest=host", "prefetch=2"],
    "host": ["rest=host", "window=1"],
    "disk": ["rest=disk", "resident_blocks=1"],
    "sharded on disk": ["share=shard", "rest=disk"],
}


@pytest.fixture
def wan22(tiny_root: Path) -> Path:
    return tiny.build("wan22", tiny_root)


@pytest.mark.parametrize("leave", ["weights", "component"])
@pytest.mark.parametrize("placed", PLACED)
@pytest.mark.parametrize("family", FAMILIES)
@on_ranks(2)
def test_each_placement_makes_the_picture(world: World, family: str, path: Path, placed: str, leave: str) -> None:
    options = [f"placement.transformer.{option}" for option in PLACED[placed]]
    pipeline = opened(world, path, *options, "mesh.context=2", f"execution.leave_inference={leave}")
    expect_the_picture(pipeline, family, path, 0)
    moves = placed != "resident" and leave == "component"
    decision = pipeline.decisions["transformer"]
    assert decision.mode is (ExecutionMode.NORMAL if moves else ExecutionMode.INFERENCE)
    assert "2 ranks share out its tokens" in decision.reason and "unknown" not in decision.reason
    assert {c.name: c.context for c in pipeline.components if c.stage == "denoise"} == {"transformer": 2}
    pipeline.close()


@pytest.mark.parametrize("placed", ["resident", "sharded", "disk"])
@pytest.mark.parametrize("family", FAMILIES)
@on_ranks(2)
def test_a_group_makes_the_pictures_that_its_requests_make_alone(
    world: World, family: str, path: Path, placed: str
) -> None:
    """Prompts of several lengths: some divide by the ranks, others do not."""
    options = [f"placement.transformer.{option}" for option in PLACED[placed]]
    pipeline = opened(world, path, *options, "mesh.context=2")
    alone = [call(pipeline, family, index) for index in range(3)]
    together = call_together(pipeline, [request_of(family, index) for index in range(3)])
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
        assert_alike(one)
    pipeline.close()


def expect_the_picture(pipeline: Pipeline, family: str, path: Path, index: int) -> None:
    """That of stock, but for the sums in another order, over all steps; the same on all ranks. Of Wan, the bits."""
    made, stock = call(pipeline, family, index), stock_bits(family, path, index)
    assert difference(stock, made) <= (0.0 if family.startswith("wan") else 1e-5)
    assert_alike(made)


@pytest.mark.parametrize("family", ["flux"])
@pytest.mark.parametrize("mode", ["merge", "dynamic"])
@pytest.mark.parametrize("placed", ["resident", "sharded", "disk"])
@on_ranks(2)
def test_adapters(world: World, family: str, path: Path, placed: str, mode: str) -> None:
    if world.rank == 0:
        save_adapter(tiny.load_stock(path), world.tmp_path / "adapter", seed=1)
    dist.barrier()
    adapter = [f"lora=[{{path: {world.tmp_path / 'adapter'}}}]", f"lora.mode={mode}"]
    options = [f"placement.transformer.{option}" for option in PLACED[placed]]
    request = replace(request_of(family, 0), lora={"adapter": 1.0})
    wanted = torch.as_tensor(opened(world, path, *adapter)(request)[0][0])
    pipeline = opened(world, path, *options, *adapter, "mesh.context=2")
    made = torch.as_tensor(pipeline(request)[0][0])
    assert difference(wanted, made) <= 1e-5 < 1e-2 < difference(stock_bits(family, path, 0), made)
    assert_alike(made)
    pipeline.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["mesh.context=4"],
        ["mesh.context=2", "placement.default.share=shard"],
        ["mesh.context=2", "placement.default.share=shard", "mesh.shard=2"],
        ["mesh.context=2", "mesh.guidance=2"],
        ["mesh.context=2", "mesh.guidance=2", "placement.default.share=shard"],
        ["mesh.context=2", "mesh.guidance=2", "placement.default.share=shard", "mesh.shard=2"],
        ["mesh.context=2", "mesh.guidance=2", "placement.default.rest=disk"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("family", ["qwenimage", "wan"])
@on_ranks(4)
def test_four_ranks(world: World, family: str, path: Path, overrides: list[str]) -> None:
    """Each team makes a picture of its own, where there are several."""
    pipeline = opened(world, path, *overrides)
    index = pipeline.world.team.index
    assert difference(stock_bits(family, path, index), call(pipeline, family, index)) <= 1e-5
    together = call_together(pipeline, [request_of(family, 2 * index + number) for number in range(2)])
    for number, made in enumerate(together, start=2 * index):
        assert difference(stock_bits(family, path, number), made) <= 1e-5
    pipeline.close()


@on_ranks(2)
def test_a_plan_that_no_test_has_proven_is_tried_on_the_loaded_model(world: World) -> None:
    """That of LTX-2 in diffusers 0.42.1 is wrong."""
    if world.rank == 0:
        write_case(CASES["LTX2Pipeline"], world.tmp_path)
    dist.barrier()
    job = [f"job.output={world.tmp_path / 'out'}", "mesh.context=2"]
    with pytest.raises(UserError, match=r"^mesh.context=2: transformer \(LTX2VideoTransformer3DModel\): .* fails: "):
        run(load_config(world.tmp_path / "job.yaml", job), joined(world))
    assert not (world.tmp_path / "out" / "manifest.jsonl").exists()


@on_ranks(2)
def test_a_call_made_both_ways(world: World, wan22: Path) -> None:
    """Both transformers of Wan 2.2: the request goes on until the second one is called."""
    pipeline = opened(world, wan22, "mesh.context=2", "placement.transformer.share=shard")
    parities = pipeline.compare(["transformer", "transformer_2"], request_of("wan22", 0))
    assert [(one.component, one.ranks, one.holds) for one in parities] == [
        ("transformer", 2, True),
        ("transformer_2", 2, True),
    ]
    assert all(one.difference == 0.0 for one in parities)
    spoil = pipeline.stock.transformer_2.blocks[1].register_forward_hook(
        lambda module, inputs, output: output * (1 + 1e-4 * world.rank)
    )
    parity = pipeline.compare(["transformer_2"], request_of("wan22", 0))[0]
    spoil.remove()
    assert not parity.holds and 1e-6 < parity.difference < 1e-2
    expect_the_picture(pipeline, "wan22", wan22, 0)
    pipeline.close()


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize("family", ["qwenimage"])
@on_ranks(2)
def test_a_failure_between_calls_on_one_rank_is_its_requests(
    world: World, family: str, path: Path, culprit: int, group: int
) -> None:
    pipeline = opened(world, path, "mesh.context=2")
    with failing(pipeline, culprit, 1, ValueError("a hiccup")):
        settled, pictures = run_prompts(world, pipeline, world.tmp_path / "out", prompts_of(3), group=group)
    failures = [result.failure for result in settled if isinstance(result, Failed)]
    assert [(failure.seed, failure.error, failure.message) for failure in failures] == [(1, "ValueError", "a hiccup")]
    if world.rank == 0:
        assert sorted(seed for _, seed in pictures) == [0, 2]
        for (_, seed), made in pictures.items():
            assert difference(stock_bits(family, path, seed), torch.as_tensor(made)) <= 1e-5
    pipeline.close()


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("family", ["wan"])
@on_ranks(2)
def test_a_failure_inside_a_call_ends_the_job(world: World, family: str, path: Path, group: int) -> None:
    """The other ranks are in the middle of an exchange, and cannot be met. Here it is the last block, past them all."""
    pipeline = opened(world, path, "mesh.context=2")
    broken = pipeline.stock.transformer.blocks[-1].register_forward_hook(_raise)
    with pytest.raises(TornApart, match=r"a hiccup \(inside the sharded denoise/transformer.forward"):
        if group == 1:
            pipeline(request_of(family, 0))
        else:
            call_together(pipeline, [request_of(family, index) for index in range(group)])
    broken.remove()
    expect_the_picture(pipeline, family, path, 0)
    pipeline.close()


def _raise(*_: object) -> None:
    raise ValueError("a hiccup")


@pytest.mark.parametrize("family", ["flux"])
@on_ranks(2)
def test_a_log_of_calls_goes_on(world: World, family: str, path: Path) -> None:
    """Whatever is replayed, the picture has the same bits; the ranks exchange nothing for those calls."""
    folder = world.tmp_path / f"rank{world.rank}"
    folder.mkdir()
    bench = Bench(opened(world, path, "mesh.context=2"), folder)
    whole, calls = bench.make(resumed_request_of(family, 1), "whole")
    assert difference(resumed_stock_bits(family, path, 1), whole) <= 1e-5 and calls == 4
    for killed_at in (0, 2, 4):
        made, computed = bench.make(resumed_request_of(family, 1), bench.cut("whole", killed_at, torn=50))
        assert torch.equal(made, whole) and computed == calls - killed_at
