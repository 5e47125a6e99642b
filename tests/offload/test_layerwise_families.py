"""Every family gives the stock pipeline's bits with all of its components offloaded, in both modes."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from offload import Offloaded, offload
from offload.units import BUFFERS, ENTRY_POINTS, OUTSIDE
from tests import tiny
from tests.offload.memory_store import MemoryStore
from weights.modes import normal_mode

CPU = torch.device("cpu")
SEED = 0

# Each value of each axis, and the pairs that share memory or traffic; every family runs all rows.
ROWS: list[tuple[int | Literal["all"], str, str, bool]] = [
    (1, "none", "inference", False),
    (2, "none", "normal", False),
    (2, "some", "inference", True),
    (3, "some", "normal", True),
    (1, "all", "normal", True),
    ("all", "none", "inference", False),
    ("all", "some", "normal", False),
]


def make_stores(pipeline: Any) -> dict[str, MemoryStore]:
    return {name: MemoryStore(m) for name, m in pipeline.components.items() if isinstance(m, nn.Module)}


def offload_all(
    pipeline: Any,
    stores: dict[str, MemoryStore],
    *,
    window: int | Literal["all"] = 2,
    resident: str = "none",
    views: bool = False,
) -> dict[str, Offloaded]:
    offloaded = {}
    for name, store in stores.items():
        num_blocks = len(store.plan.keys() - {OUTSIDE, BUFFERS})
        count = {"none": 0, "some": num_blocks // 2, "all": num_blocks}[resident]
        store.has_views = views
        module = getattr(pipeline, name)
        offloaded[name] = offload(module, store, device=CPU, window=window, resident_blocks=count)
    return offloaded


@contextmanager
def calls_in_normal_mode(modules: list[nn.Module]) -> Iterator[None]:
    """As a runner does that leaves inference mode for components whose weights move."""
    wrapped = [(m, name, getattr(m, name)) for m in modules for name in ENTRY_POINTS if name in vars(m)]
    for module, name, method in wrapped:

        def call(*args: Any, method: Any = method, **kwargs: Any) -> Any:
            with normal_mode():
                return method(*args, **kwargs)

        setattr(module, name, wraps(method)(call))
    try:
        yield
    finally:
        for module, name, method in wrapped:
            setattr(module, name, method)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_the_picture_is_the_stock_one(name: str, tiny_root: Path) -> None:
    family = tiny.FAMILIES[name]
    pipeline: Any = tiny.load_stock(tiny.build(name, tiny_root))
    expected = tiny.call_stock(pipeline, family, family.prompts[0], SEED)
    stores = make_stores(pipeline)
    for window, resident, mode, views in ROWS:
        offloaded = offload_all(pipeline, stores, window=window, resident=resident, views=views)
        modules = [each.module for each in offloaded.values()] if mode == "normal" else []
        with calls_in_normal_mode(modules):
            picture = tiny.call_stock(pipeline, family, family.prompts[0], SEED)
        np.testing.assert_array_equal(picture, expected, err_msg=f"{window=} {resident=} {mode=} {views=}")
        for each in offloaded.values():
            assert each.bytes_on_device <= each.bytes_bound
            each.end()
            assert each.bytes_on_device == each.bytes_at_rest
            assert not any(t.is_inference() for t in (*each.module.parameters(), *each.module.buffers()))
            each.remove()
    np.testing.assert_array_equal(tiny.call_stock(pipeline, family, family.prompts[0], SEED), expected)


@pytest.mark.parametrize("name", ["flux", "wan22"])
def test_requests_in_turn_and_bfloat16(name: str, tiny_root: Path) -> None:
    """From the second request on, nothing is guessed: no block of a denoiser is waited for that was not on its way."""
    family = tiny.FAMILIES[name]
    pipeline: Any = tiny.load_stock(tiny.build(name, tiny_root), torch.bfloat16)
    prompts = (*family.prompts, *family.prompts)
    expected = [tiny.call_stock(pipeline, family, prompt, SEED) for prompt in prompts]
    offloaded = offload_all(pipeline, make_stores(pipeline))
    for prompt, wanted in zip(prompts, expected, strict=True):
        np.testing.assert_array_equal(tiny.call_stock(pipeline, family, prompt, SEED), wanted)
        for each in offloaded.values():
            each.end()
    assert [offloaded[denoiser].traffic.demand_fetches for denoiser in family.denoisers] == [0] * len(family.denoisers)


def test_pipelines_read_dtype_and_device_while_all_is_away(tiny_root: Path) -> None:
    pipeline: Any = tiny.load_stock(tiny.build("flux", tiny_root), torch.bfloat16)
    for each in offload_all(pipeline, make_stores(pipeline)).values():
        assert each.module.dtype is torch.bfloat16
        assert each.module.device == CPU
        assert not each.is_up
    assert pipeline._execution_device == CPU
    assert pipeline.to("cpu") is pipeline
    assert pipeline.to(torch.bfloat16) is pipeline
    with pytest.raises(RuntimeError, match="is offloaded"):
        pipeline.to(torch.float32)


def test_two_pipelines_do_not_share_anything(tiny_root: Path) -> None:
    """Also where their stores are one: the same weights under different prompts, interleaved."""
    path, family = tiny.build("sana", tiny_root), tiny.FAMILIES["sana"]
    pipelines: list[Any] = [tiny.load_stock(path) for _ in range(2)]
    expected = [tiny.call_stock(pipelines[0], family, prompt, SEED) for prompt in family.prompts[:2]]
    store = MemoryStore(pipelines[0].transformer, views=False)
    both = [offload(pipeline.transformer, store, device=CPU) for pipeline in pipelines]
    for _ in range(2):
        for pipeline, prompt, wanted in zip(pipelines, family.prompts, expected, strict=False):
            np.testing.assert_array_equal(tiny.call_stock(pipeline, family, prompt, SEED), wanted)
    both[0].remove()
    np.testing.assert_array_equal(tiny.call_stock(pipelines[1], family, family.prompts[1], SEED), expected[1])


def test_saving_an_offloaded_pipeline_saves_the_true_weights(tiny_root: Path, tmp_path: Path) -> None:
    path = tiny.build("sd3", tiny_root)
    pipeline: Any = tiny.load_stock(path)
    offload_all(pipeline, make_stores(pipeline), window=1)
    pipeline.save_pretrained(tmp_path)
    files = sorted(file.relative_to(path) for file in path.rglob("*.safetensors"))
    assert files
    for file in files:
        assert (tmp_path / file).read_bytes() == (path / file).read_bytes(), file
