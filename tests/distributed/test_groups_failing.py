"""What goes wrong in a group stays with the request that it belongs to."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import offload
from runner.job.prompts import Prompt
from runner.job.results import Failed
from runner.output.folder import Folder
from runner.output.manifest import Manifest
from runner.pipeline.pipeline import Pipeline
from tests import tiny
from tests.distributed.placed import call, opened, run_prompts, stock_bits
from tests.ranks import World, on_ranks

PROMPTS = ("a red fox in the deep snow", "blue whale under a bright moon", "the culprit", "an old clock on the wall")


@pytest.fixture
def path(tiny_root: Path) -> Path:
    return tiny.build("flux", tiny_root)


def is_culprit(pipeline: Pipeline) -> bool:
    request = pipeline.progress.request
    return request is not None and request.prompt == "the culprit"


@contextmanager
def failing(pipeline: Pipeline, owner: type, method: str, at: int) -> Iterator[None]:
    """The method raises, of the culprit's calls the one with this number."""
    plain, calls = getattr(owner, method), [0]

    @functools.wraps(plain)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_culprit(pipeline):
            calls[0] += 1
            if calls[0] == at:
                raise ValueError("as told")
        return plain(self, *args, **kwargs)

    setattr(owner, method, wrapped)
    try:
        yield
    finally:
        setattr(owner, method, plain)


PLACES: dict[str, Callable[[Any], tuple[type, str, int]]] = {
    "before any call": lambda stock: (type(stock), "encode_prompt", 1),
    "between two steps": lambda stock: (type(stock.scheduler), "step", 2),
    "in a block": lambda stock: (type(stock.transformer.single_transformer_blocks[0].attn), "forward", 4),
    "in a text encoder's block": lambda stock: (type(stock.text_encoder_2.encoder.block[0].layer[0]), "forward", 1),
    "in the decoder": lambda stock: (type(stock.vae.decoder), "forward", 1),
}


def expect_all_but_the_culprit(world: World, pipeline: Pipeline, path: Path, prompts: int) -> None:
    """Four prompts over and over: the third of them fails."""
    call = tiny.FAMILIES["flux"].call
    asked = [Prompt(PROMPTS[index % 4], index, call) for index in range(prompts)]
    results, pictures = run_prompts(world, pipeline, world.tmp_path / "out", asked, group=4)
    failed = [result for result in results if isinstance(result, Failed)]
    assert [result.request.prompt for result in failed] == ["the culprit"] * len(failed) and failed
    assert all("ValueError: as told" in result.failure.reason for result in failed)
    assert len(pictures) + len(failed) == prompts
    state = Manifest(Folder(world.tmp_path / "out")).recover()
    tries = {id: number for id, number in state.attempts.items() if id not in state.finished}
    assert set(tries.values()) == {1}, "and no other loses a try"
    for (prompt, seed), picture in pictures.items():
        assert np.array_equal(picture, expected(path, str(prompt), seed)), (prompt, seed)


@functools.cache
def _stock(path: Path) -> Any:
    return tiny.load_stock(path)


@functools.cache
def expected(path: Path, prompt: str, seed: int) -> np.ndarray:
    call = tiny.FAMILIES["flux"].call
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(seed)
        return _stock(path)(prompt, **call, generator=generator, output_type="np").images[0]


@pytest.mark.parametrize("where", PLACES)
@on_ranks(1)
def test_an_error_of_one_request_costs_the_others_of_its_group_nothing(world: World, path: Path, where: str) -> None:
    pipeline = opened(world, path, "placement.default.rest=disk")
    with failing(pipeline, *PLACES[where](pipeline.stock)):
        expect_all_but_the_culprit(world, pipeline, path, 4)
    for component in pipeline.components:
        offloader = offload.offloader_of(component.module)
        assert offloader is not None and offloader.bytes_on_device == offloader.bytes_at_rest


@pytest.mark.parametrize("where", PLACES)
@on_ranks(1)
def test_on_one_rank_also_where_weights_are_sharded(world: World, path: Path, where: str) -> None:
    pipeline = opened(world, path, "placement.default.share=shard", "execution.leave_inference=weights")
    with failing(pipeline, *PLACES[where](pipeline.stock)):
        expect_all_but_the_culprit(world, pipeline, path, 4)
    assert torch.equal(call(pipeline, "flux", 0), stock_bits("flux", path, 0))


@pytest.mark.parametrize("where", ["before any call", "between two steps"])
@on_ranks(2)
def test_on_ranks_that_share_weights_the_culprit_leaves_on_all_of_them(world: World, path: Path, where: str) -> None:
    """Two ranks, four requests each; of the pair with the culprit the other one is made again."""
    pipeline = opened(world, path, "placement.default.share=shard")
    with failing(pipeline, *PLACES[where](pipeline.stock)):
        expect_all_but_the_culprit(world, pipeline, path, 7)
