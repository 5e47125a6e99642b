"""What a rehearsal without weights says of a request's calls is what the stock pipeline does: how many there are, and
their FLOPs by torch's own counter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from runner.components.component import METHODS
from runner.components.directory import directory_of
from runner.components.stages import components_of
from runner.config import load_config
from runner.plan.fakes import FakeTracker, NoFills
from runner.plan.model import model_of
from runner.plan.rehearsal import rehearse
from runner.plan.work import Workload
from tests import tiny

CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def rehearsed(family: str, root: Path) -> Workload:
    config = load_config(None, [f"model.path={tiny.build(family, root)}"])
    directory = directory_of(config, weights=False)
    described = tiny.FAMILIES[family]
    return rehearse(model_of(directory, config), directory, described.call, prompt_of(family))


def prompt_of(family: str) -> dict[str, Any]:
    prompt = tiny.FAMILIES[family].prompts[0]
    return {"class_labels" if isinstance(prompt, list) else "prompt": prompt}


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_calls_and_flops_are_those_of_the_stock_pipeline(family: str, tiny_root: Path) -> None:
    workload = rehearsed(family, tiny_root)
    assert workload.unknown is None
    stock = tiny.load_stock(tiny_root / family)
    counter = FlopCounterMode(display=False, custom_mapping={CPU_ATTENTION: _attention_flops})
    calls, flops = _counted(stock, counter)
    with counter, torch.no_grad():
        stock(**prompt_of(family), **tiny.FAMILIES[family].call, generator=torch.Generator().manual_seed(0))
    for component in components_of(stock):
        work = workload.of(component.name)
        assert work.calls == calls.get(component.name, 0), component.name
        assert work.calls * work.flops == pytest.approx(flops.get(component.name, 0)), component.name
        assert work.activations > 0


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _counted(stock: Any, counter: FlopCounterMode) -> tuple[dict[str, int], dict[str, int]]:
    """Calls and FLOPs by component, as they come."""
    calls: dict[str, int] = {}
    flops: dict[str, int] = {}
    for component in components_of(stock):
        for method in ("forward", *METHODS):
            if callable(getattr(type(component.module), method, None)):
                _count(component.name, component.module, method, counter, calls, flops)
    return calls, flops


def _count(
    name: str, module: nn.Module, method: str, counter: FlopCounterMode, calls: dict[str, int], flops: dict[str, int]
) -> None:
    inner = getattr(module, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        before = counter.get_total_flops()
        result = inner(*args, **kwargs)
        calls[name] = calls.get(name, 0) + 1
        flops[name] = flops.get(name, 0) + counter.get_total_flops() - before
        return result

    call.__wrapped__ = inner  # type: ignore[attr-defined]
    setattr(module, method, call)


def test_separate_calls_of_a_step_are_seen(tiny_root: Path) -> None:
    """Wan and Qwen-Image call their transformer for each condition, SD3 for both at once."""
    together = {
        family: rehearsed(family, tiny_root).of("transformer").together for family in ("wan", "qwenimage", "sd3")
    }
    assert together == {"wan": 2, "qwenimage": 2, "sd3": 1}


def test_what_cannot_be_rehearsed_is_said(tiny_root: Path) -> None:
    config = load_config(None, [f"model.path={tiny.build('flux', tiny_root)}"])
    directory = directory_of(config, weights=False)
    workload = rehearse(model_of(directory, config), directory, {"num_inference_steps": 7, "height": "x"}, {})
    assert workload.unknown is not None and "Error" in workload.unknown
    assert workload.of("transformer").calls == 7


def test_a_large_mask_is_counted_and_never_made() -> None:
    """As HunyuanVideo 1.5 makes it, row by row; what is small stays real, and is written to."""
    tracker = FakeTracker()
    tracker.fake = FakeTensorMode(allow_non_fake_inputs=True)
    with tracker, NoFills():
        mask, small = torch.full((2048, 2048), float("-inf")), torch.ones(4, 4)
        for row in range(4):
            mask[row, : row + 1] = small[row, : row + 1] = 0
    assert isinstance(mask, FakeTensor) and tuple(mask.shape) == (2048, 2048)
    assert tracker.live == mask.nbytes + small.nbytes
    assert torch.equal(small, torch.ones(4, 4).triu(1))
