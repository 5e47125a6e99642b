"""Rounds whose width changes, over ranks that share weights: the stock bits, and as many calls and gathers on each."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runner.pipeline.pipeline import Pipeline
from runner.pipeline.separate_calls import separate_calls
from runner.request import Request
from tests import tiny
from tests.distributed.counted import alike_in_each_copy
from tests.distributed.placed import call_together, new_stock_of, opened, request_of
from tests.distributed.teams import SHARDED
from tests.ranks import World, on_ranks
from tests.tiny.family import NUM_STEPS


# Not built on the ranks: there, transformers writes weights on rank 0 only.
@pytest.fixture
def qwenimage(tiny_root: Path) -> Path:
    return tiny.build("qwenimage", tiny_root)


@pytest.fixture
def sd3(tiny_root: Path) -> Path:
    return tiny.build("sd3", tiny_root)


@pytest.fixture
def modular(tiny_root: Path) -> Path:
    return tiny.build("modular_qwenimage", tiny_root)


LONG = "a very blurry picture of a low quality, with text"


def stock_bits(stock: Any, family: str, request: Request) -> torch.Tensor:
    """Of a request that differs from its family's in more than the prompt."""
    described = tiny.FAMILIES[family]
    changed = tiny.TinyPipeline(family, described.build, request.call)
    return torch.as_tensor(tiny.call_stock(stock, changed, request.prompt, request.seed)[0])


def expect_made(pipeline: Pipeline, family: str, path: Path, requests: list[Request], group: int) -> None:
    """With the stock bits, one by one or together."""
    stock, made = new_stock_of(path), []
    with alike_in_each_copy(pipeline):
        if group > 1:
            made = call_together(pipeline, requests)
        else:
            made = [torch.as_tensor(pipeline(request)[0][0]) for request in requests]
    for request, picture in zip(requests, made, strict=True):
        assert torch.equal(picture, stock_bits(stock, family, request)), request


def widths(pipeline: Pipeline) -> Mapping[int, int]:
    assert pipeline.rounds is not None
    return pipeline.rounds.figures.components["transformer"].widths


@pytest.mark.parametrize("group", [1, 2])
@on_ranks(2)
def test_other_lengths_of_a_negative_prompt_over_a_sharded_copy(world: World, qwenimage: Path, group: int) -> None:
    pipeline = opened(world, qwenimage, "mesh.guidance=2", SHARDED)
    negative = ["blurry", LONG, "blurry", "low quality"]
    requests = [request_of("qwenimage", index, negative_prompt=words) for index, words in enumerate(negative)]
    expect_made(pipeline, "qwenimage", qwenimage, requests, group)
    assert widths(pipeline)[2] > 0


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 2])
@on_ranks(4)
def test_two_teams_that_share_a_copy_have_prompts_of_unlike_lengths(world: World, qwenimage: Path, group: int) -> None:
    """Each learns other kinds of calls, at other times: what one knows and the other does not is made by all."""
    pipeline = opened(world, qwenimage, "mesh.guidance=2", SHARDED)
    lengths = ([1, 2, 1, 9], [9, 1, 7, 1])[pipeline.world.team.index]
    call = tiny.FAMILIES["qwenimage"].call
    requests = [
        Request("fox " * (12 - n), seed, {**call, "negative_prompt": "blurry " * n}, output_type="np")
        for seed, n in enumerate(lengths)
    ]
    expect_made(pipeline, "qwenimage", qwenimage, requests, group)
    assert widths(pipeline)[2] > 0


@pytest.mark.parametrize("placement", [[], [SHARDED]], ids=["whole", "sharded"])
@on_ranks(3)
def test_three_ranks_on_two_calls(world: World, qwenimage: Path, placement: list[str]) -> None:
    """One has none of its own; where weights are shared, it makes one again."""
    pipeline = opened(world, qwenimage, "mesh.guidance=3", *placement)
    requests = [request_of("qwenimage", index) for index in (0, 0)]
    stock = new_stock_of(qwenimage)
    with alike_in_each_copy(pipeline) if placement else nullcontext():
        for request in requests:
            assert torch.equal(torch.as_tensor(pipeline(request)[0][0]), stock_bits(stock, "qwenimage", request))
    assert widths(pipeline) == {2: 2 * NUM_STEPS}


SKIPS = {"skip_guidance_layers": [1], "skip_layer_guidance_start": -0.1, "skip_layer_guidance_stop": 0.6}


@pytest.mark.parametrize("placement", [[], [SHARDED]], ids=["whole", "sharded"])
@on_ranks(2)
def test_a_call_that_skips_blocks_is_in_no_round_with_another_where_weights_are_shared(
    world: World, sd3: Path, placement: list[str]
) -> None:
    """It is made in the first two of three steps. Where each rank has all weights, it shares a round of two."""
    pipeline, stock = opened(world, sd3, "mesh.guidance=2", *placement), new_stock_of(sd3)
    requests = [request_of("sd3", index, **SKIPS) for index in (0, 1)]
    plain = stock_bits(stock, "sd3", request_of("sd3", 0))
    with alike_in_each_copy(pipeline) if placement else nullcontext() as counted:
        for request in requests:
            made = torch.as_tensor(pipeline(request)[0][0])
            assert torch.equal(made, stock_bits(stock, "sd3", request)) and not torch.equal(made, plain)
    assert widths(pipeline) == ({1: 2 * (NUM_STEPS + 2)} if placement else {2: 2 * 2, 1: 2})
    if counted is not None:
        assert counted.forwards["transformer"] == 2 * (NUM_STEPS + 2)
        for block, number in (("0", NUM_STEPS + 2), ("1", NUM_STEPS)):
            assert counted.gathers.count(f"FSDP::all_gather (transformer_blocks.{block})") == 2 * number


@pytest.mark.parametrize("placement", [[], [SHARDED]], ids=["whole", "sharded"])
@pytest.mark.parametrize("group", [1, 2])
@on_ranks(2)
def test_guidance_in_some_of_the_steps(world: World, modular: Path, placement: list[str], group: int) -> None:
    """A guider that guides two steps of three: rounds of two, and then of one."""
    family = tiny.MODULAR["modular_qwenimage"]
    pipeline = opened(world, modular, "mesh.guidance=2", "components.guider.stop=0.7", *placement)
    assert separate_calls(type(pipeline.stock), ["transformer"]) == 2
    stock = tiny.load_modular(modular)
    whole = np.asarray(tiny.call_modular(stock, family, family.prompts[0], 0)[0])
    wanted = []
    for seed in (0, 1):
        stock.update_components(guider=stock.guider.new(stop=0.7))  # which keeps the step that it was at
        wanted.append(np.asarray(tiny.call_modular(stock, family, family.prompts[seed], seed)[0]))
    requests = [Request(family.prompts[seed], seed, family.call, output_type="np") for seed in (0, 1)]
    with alike_in_each_copy(pipeline) if placement else nullcontext():
        if group == 1:
            made = [np.asarray(pipeline(request)[0][0]) for request in requests]
        else:
            made = [picture.numpy() for picture in call_together(pipeline, requests)]
    assert np.array_equal(made[0], wanted[0]) and np.array_equal(made[1], wanted[1])
    assert not np.array_equal(made[0], whole)
    assert widths(pipeline) == {2: 2 * 2, 1: 2}
