"""Schedulers that draw from the global generators: a request gives the same bits whatever ran before it."""

import random
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from runner.calls.randomness import global_seed
from runner.config import load_config
from runner.pipeline.open import open_pipeline
from runner.request import Request
from runner.world import World
from tests import tiny

ALONE = World(0, 1, torch.device("cpu"))
# family: the scheduler, and its settings over those of the directory.
STOCHASTIC: dict[str, tuple[str, dict[str, Any]]] = {
    "flux": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "wan": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_flow_sigmas": True}),
    "dit": ("DDPMScheduler", {}),
    "pixart": ("EulerAncestralDiscreteScheduler", {}),
}


def with_scheduler(family: str, pipeline: Any) -> Any:
    name, settings = STOCHASTIC[family]
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **settings)
    return pipeline


def text(family: str, index: int) -> Any:
    prompt = tiny.FAMILIES[family].prompts[index]
    return prompt[0] if isinstance(prompt, list) else prompt


@pytest.mark.parametrize("family", STOCHASTIC)
def test_a_request_gives_the_bits_of_stock_seeded_alike_first_last_and_after_a_failure(
    family: str, tiny_root: Path
) -> None:
    path, described = tiny.build(family, tiny_root), tiny.FAMILIES[family]
    stock = with_scheduler(family, tiny.load_stock(path))
    torch.manual_seed(global_seed(7))
    np.random.seed(global_seed(7) % 2**32)
    random.seed(global_seed(7))
    expected = torch.as_tensor(tiny.call_stock(stock, described, described.prompts[1], 7, output_type="np")[0])

    pipeline = open_pipeline(load_config(None, [f"model.path={path}"]), ALONE)
    with_scheduler(family, pipeline.stock)

    def made(index: int, seed: int, **differs: Any) -> torch.Tensor:
        call = {**described.call, **differs}
        return torch.as_tensor(pipeline(Request(text(family, index), seed, call, output_type="np"))[0][0])

    assert torch.equal(made(1, 7), expected), "first"
    made(0, 3)
    assert torch.equal(made(1, 7), expected), "after another request"
    with pytest.raises(Exception, match=r".+"):
        made(1, 7, num_inference_steps="none")
    assert torch.equal(made(1, 7), expected), "after a failure"


def test_the_global_seed_is_not_the_requests_own() -> None:
    """Else the first noise of a stochastic sampler would be the request's initial noise once more."""
    assert len({global_seed(seed) for seed in range(-50, 50)} - set(range(-50, 50))) == 100
    assert all(0 <= global_seed(seed) < 2**63 for seed in (-(2**63), 2**64 - 1))
