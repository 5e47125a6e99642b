"""Shared-out calls beside what changes from request to request, or from step to step; and what people are told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import FirstBlockCacheConfig

from runner.report.side_by_side import explained, rounds_of, wasted
from tests import tiny
from tests.distributed.placed import new_stock_of, opened, request_of
from tests.ranks import World, on_ranks

FAMILY = "qwenimage"


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build(FAMILY, tiny_root)


def stock_picture(stock: Any, seed: int, differs: Mapping[str, Any]) -> np.ndarray:
    described = tiny.FAMILIES[FAMILY]
    changed = tiny.TinyPipeline(FAMILY, described.build, {**described.call, **differs})
    return np.asarray(tiny.call_stock(stock, changed, described.prompts[seed % 3], seed)[0])


@on_ranks(2)
def test_other_lengths_of_a_negative_prompt_and_none_in_mid_job(world: World, path: Path) -> None:
    pipeline, stock = opened(world, path, "mesh.guidance=2"), new_stock_of(path)
    for differs in (
        {},
        {"negative_prompt": "blurry"},
        {"true_cfg_scale": 1.0},  # one call a step
        {"negative_prompt": "a very blurry picture of a low quality, with text"},
        {"negative_prompt": "blurry"},
    ):
        made = np.asarray(pipeline(request_of(FAMILY, 1, **differs))[0][0])
        assert np.array_equal(made, stock_picture(stock, 1, differs)), differs
    assert set(rounds_of(pipeline)["transformer"]["widths"]) == {"1", "2"}
    assert rounds_of(pipeline)["transformer"]["calls_shared_out"]
    assert wasted(pipeline) is None


@on_ranks(2)
def test_a_cache_of_diffusers_has_every_rank_make_every_call_and_that_is_told(world: World, path: Path) -> None:
    """It skips blocks where the last call of its condition was alike, so that it has to see every call."""
    pipeline, stock = opened(world, path, "mesh.guidance=2"), new_stock_of(path)
    for one in (pipeline.stock, stock):
        one.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    for seed in (0, 1):
        made = np.asarray(pipeline(request_of(FAMILY, seed))[0][0])
        assert np.array_equal(made, stock_picture(stock, seed, {})), seed
    told = rounds_of(pipeline)["transformer"]
    assert told["calls_shared_out"] == told["bytes_exchanged"] == 0
    (reason,) = told["serial"]
    assert reason.startswith("the hook ")
    assert f"rounds: every call of transformer is made by every rank: {reason}" in explained(pipeline)
    warning = wasted(pipeline)
    assert warning is not None and f"transformer: {reason}" in warning and "1 of them for nothing" in warning


@on_ranks(2)
def test_ranks_that_had_nothing_to_do_are_told_of(world: World, path: Path) -> None:
    pipeline = opened(world, path, "mesh.guidance=2")
    assert wasted(pipeline) is None, "nothing was made yet"
    assert any("are shared out over 2 ranks: " in line and "transformer" in line for line in explained(pipeline))
    pipeline(request_of(FAMILY, 0, true_cfg_scale=1.0))
    warning = wasted(pipeline)
    assert warning is not None and "transformer: one call at a time" in warning and "mesh.context=2" in warning
