"""Compiled blocks: near the stock picture, the same bits in every placement, and compiled once."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from runner.components.compiled import TooManyGraphs, is_compiled, require_compiler
from runner.config import load_config
from runner.errors import UserError
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from runner.world import World
from tests import tiny
from tests.tiny import oracle

ALONE = World(0, 1, torch.device("cpu"))
TOLERANCE = 1e-5  # of the picture, rms relative in fp32
DISK = ("placement.transformer.rest=disk",)
INSIDE = "execution.leave_inference=weights"


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    before = torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit = before


def opened(path: Path, *overrides: str, compile: str = "true") -> Pipeline:
    return open_pipeline(load_config(None, [f"model.path={path}", f"execution.compile={compile}", *overrides]), ALONE)


def made(pipeline: Pipeline, name: str, prompt: str, seed: int = 0, **call: Any) -> np.ndarray:
    family = tiny.FAMILIES[name]
    output = pipeline(Request(prompt, seed, {**family.call, **call}, output_type="np"))
    return np.asarray(output[family.output])


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean((one - other) ** 2)) / np.sqrt(np.mean(other**2)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", "wan", "pixart", "sd3"])
def test_near_stock_and_alike_in_every_placement(name: str, tiny_root: Path) -> None:
    path = tiny.build(name, tiny_root)
    pictures = [made(opened(path, *placement), name, "a cat") for placement in ((), DISK, (*DISK, INSIDE))]
    stock = np.asarray(oracle.stock(path, tiny.FAMILIES[name], "a cat", 0))
    assert apart(pictures[0], stock) < TOLERANCE
    assert all(np.array_equal(pictures[0], other) for other in pictures[1:])


def test_compiled_once_for_all_requests_and_turns(tiny_root: Path) -> None:
    path = tiny.build("flux", tiny_root)
    pipeline = opened(path, *DISK, INSIDE)
    assert [component.name for component in pipeline.components if is_compiled(component.module)] == ["transformer"]
    one_by_one = [made(pipeline, "flux", prompt, seed) for seed, prompt in enumerate(("a cat", "a dog", "a cow"))]
    after_first = graphs()
    assert after_first > 0, "blocks were compiled"
    together = in_a_group(pipeline, ("a cat", "a dog", "a cow"))
    assert graphs() == after_first
    assert all(np.array_equal(*pair) for pair in zip(one_by_one, together, strict=True))


def in_a_group(pipeline: Pipeline, prompts: Sequence[str]) -> list[np.ndarray]:
    family = tiny.FAMILIES["flux"]
    requests = [Request(prompt, seed, family.call, output_type="np") for seed, prompt in enumerate(prompts)]
    pictures: dict[int, np.ndarray] = {}

    def ended(index: int, outcome: Any, _: float) -> None:
        pictures[index] = np.asarray(outcome()[family.output])

    pipeline.make_together(requests, [None] * len(requests), ended)
    return [pictures[index] for index in range(len(requests))]


@pytest.mark.slow
def test_a_graph_for_each_shape_moves_no_bit_of_the_others(tiny_root: Path) -> None:
    """Whatever was made in between: torch's default makes the second shape's graph serve the first shape too."""
    pipeline = opened(tiny.build("flux", tiny_root))
    first = made(pipeline, "flux", "a cat")
    made(pipeline, "flux", "a cat", height=32)
    between = graphs()
    assert np.array_equal(made(pipeline, "flux", "a cat"), first)
    assert graphs() == between


@pytest.mark.slow
def test_dynamic_takes_prompts_of_any_length(tiny_root: Path) -> None:
    pipeline = opened(tiny.build("qwenimage", tiny_root), compile="dynamic")
    made(pipeline, "qwenimage", "a cat")
    after_first = graphs()
    picture = made(pipeline, "qwenimage", "a cat that is longer than the first one", 1)
    assert graphs() == after_first
    stock = oracle.stock(
        tiny.build("qwenimage", tiny_root), tiny.FAMILIES["qwenimage"], "a cat that is longer than the first one", 1
    )
    assert apart(picture, np.asarray(stock)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["merge", "dynamic"])
def test_adapters_change_and_nothing_is_compiled_again(mode: str) -> None:
    adapter = ("lora=[{path: models/emoji-dit-lora-ink, name: ink}]", f"lora.mode={mode}")
    call = {
        "height": 64,
        "width": 64,
        "num_inference_steps": 2,
        "clean_caption": False,
        "use_resolution_binning": False,
    }
    compiled, plain = (opened(Path("models/emoji-dit"), *adapter, compile=how) for how in ("true", "false"))
    pictures = []
    for strength in (1.0, 0.5, 0.0):
        request = Request("a red apple", 0, call, {"ink": strength}, output_type="np")
        pictures.append(compiled(request)[0])
        assert apart(pictures[-1], plain(request)[0]) < TOLERANCE
        if strength == 1.0:
            after_first = graphs()
    assert graphs() == after_first
    assert apart(pictures[0], pictures[2]) > 1000 * TOLERANCE, "the adapter moves the picture"


def test_more_shapes_than_there_is_room_for_are_an_error(tiny_root: Path) -> None:
    """torch's own way is to go on uncompiled, with other bits, and to say so in a log."""
    pipeline = opened(tiny.build("flux", tiny_root))
    torch._dynamo.config.recompile_limit = 1
    with pytest.raises(TooManyGraphs, match=r"for 1 shapes already; .* or use dynamic"):
        made(pipeline, "flux", "a cat")


def test_a_machine_that_cannot_compile_is_told_before_loading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (str(tmp_path / "no-compiler"),))
    with pytest.raises(UserError, match=r"execution\.compile: torch\.compile does not work here for cpu \(.*g\+\+"):
        require_compiler(torch.device("cpu"))


def test_only_what_compile_can_be() -> None:
    with pytest.raises(UserError, match=r"execution\.compile is 'maybe'; it must be true, false or dynamic"):
        load_config(None, ["execution.compile=maybe"])
