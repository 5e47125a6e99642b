"""Jobs of requests that a team makes together: what is asked for, what is expected, and what fails on one rank."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from runner.job.prompts import Prompt
from runner.output.folder import Folder
from runner.output.manifest import Manifest
from runner.pipeline.pipeline import Pipeline
from tests.distributed.placed import request_of, stock_bits

FAMILY = "qwenimage"  # calls its transformer once with the prompt, once with the negative one
SHARDED = "placement.transformer.share=shard"


def prompts_of(number: int) -> list[Prompt]:
    requests = [request_of(FAMILY, index) for index in range(number)]
    return [Prompt(request.prompt, request.seed, dict(request.call)) for request in requests]


def expect_stock_pictures(pictures: dict[Any, np.ndarray], path: Path, numbers: list[int]) -> None:
    """Request i is the family's, with seed i."""
    assert sorted(seed for _, seed in pictures) == numbers
    for (_, seed), picture in pictures.items():
        assert np.array_equal(picture, stock_bits(FAMILY, path, seed).numpy()), seed


def expect_recorded(output: Path, made: int, failed: int) -> None:
    state = Manifest(Folder(output)).recover()
    assert (len(state.finished), len(state.failures)) == (made, failed)
    assert set(state.attempts.values()) <= {1}, "a try that another rank ended does not count"
    assert len(list(output.glob("**/*.npy"))) == made


@contextmanager
def failing(pipeline: Pipeline, rank: int, seed: int, error: Exception, times: int = 1000) -> Iterator[None]:
    """Between two calls of the denoiser, on one rank alone, in the request of this seed."""
    left = [times]
    owner = type(pipeline.stock.scheduler)
    plain = owner.step

    @functools.wraps(plain)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = pipeline.progress.request
        is_now = pipeline.world.rank == rank and request is not None and request.seed == seed and self.step_index
        if is_now and left[0]:
            left[0] -= 1
            raise error
        return plain(self, *args, **kwargs)

    owner.step = step
    try:
        yield
    finally:
        owner.step = plain
