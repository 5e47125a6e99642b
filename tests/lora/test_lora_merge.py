"""Merged weights are what the libraries' own fuse makes, and the base comes back bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lora.merged
from lora import Edits, LowRank, MergedWeights, edits_of, read_adapter
from lora.arithmetic import TILE
from offload import StoreError
from runner.config import load_config
from runner.pipeline.open import open_pipeline
from runner.world import World
from tests import tiny
from tests.lora.lora_files import (
    CONVOLUTIONS,
    LINEAR,
    WITH_LOADER,
    WITHOUT_LOADER,
    Stock,
    merged,
    modules_of,
    open_tiny,
    picture,
    save_adapter,
)

FAMILIES = (*WITH_LOADER, *WITHOUT_LOADER)
BOTH = {"one": 0.7, "two": -0.4}


def two_adapters(name: str, root: Path, folder: Path, **options: object) -> dict[str, Path]:
    pipeline = open_tiny(name, root)
    return {
        "one": save_adapter(pipeline, folder / "one", seed=1, text_encoder=name in ("flux", "sd3"), **options),
        "two": save_adapter(pipeline, folder / "two", seed=2, rank=8, alpha=3, use_rslora=True, **options),
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_and_pictures_are_those_of_stock_fuse(name: str, tiny_root: Path, tmp_path: Path) -> None:
    folders = two_adapters(name, tiny_root, tmp_path, targets=LINEAR)
    stock, ours = Stock(open_tiny(name, tiny_root), folders), open_tiny(name, tiny_root)
    stock.set(BOTH)
    stock.fuse()
    modules = modules_of(ours)
    adapters = {key: read_adapter(folder, modules) for key, folder in folders.items()}
    base = picture(ours, name)
    places = {component: MergedWeights(module) for component, module in modules.items()}

    for component, place in places.items():
        place.set(edits_of(component, adapters, BOTH))
    for component in {component for adapter in adapters.values() for component in adapter.components}:
        expected = stock.weights(component)
        for key, weight in modules[component].state_dict().items():
            torch.testing.assert_close(weight, expected[key], rtol=0, atol=0, msg=f"{component}.{key}")
    made = picture(ours, name)
    assert np.array_equal(made, picture(stock.pipeline, name)) and not np.array_equal(made, base)

    for component, place in places.items():
        place.set(edits_of(component, adapters, {"two": 1.0}))
    switched = picture(ours, name)
    for place in places.values():
        place.set(Edits())
    assert np.array_equal(picture(ours, name), base) and not np.array_equal(switched, made)


@pytest.mark.parametrize("name", FAMILIES)
def test_switching_and_removing_restores_the_base_bits(name: str, tiny_root: Path, tmp_path: Path) -> None:
    folders = two_adapters(name, tiny_root, tmp_path)
    pipeline = open_tiny(name, tiny_root, torch.bfloat16)
    module, modules = pipeline.transformer, modules_of(pipeline)
    adapters = {key: read_adapter(folder, modules) for key, folder in folders.items()}
    base = {key: value.clone() for key, value in module.state_dict().items()}
    place = MergedWeights(module)

    def only(key: str, weight: float = 1.0) -> dict[str, torch.Tensor]:
        fresh = open_tiny(name, tiny_root, torch.bfloat16).transformer
        MergedWeights(fresh).set(edits_of("transformer", adapters, {key: weight}))
        return fresh.state_dict()

    for key, weight in (("one", 1.0), ("two", 1.0), ("two", 0.25), ("one", -2.0)):
        place.set(edits_of("transformer", adapters, {key: weight}))
        expected = only(key, weight)
        assert all(torch.equal(value, expected[k]) for k, value in module.state_dict().items()), (key, weight)
    place.set(edits_of("transformer", adapters, {"one": 0.0}))
    assert all(torch.equal(value, base[key]) for key, value in module.state_dict().items())
    place.set(edits_of("transformer", adapters, BOTH))
    place.close()
    assert all(torch.equal(value, base[key]) for key, value in module.state_dict().items())
    assert place.kept_bytes == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_is_the_fp64_result_rounded_once(name: str, tiny_root: Path, tmp_path: Path) -> None:
    """|error| <= u |w|, u = 2^-8: half a unit in the last place of bf16, and a millionth for what fp32 loses in sums.

    Stock fuse rounds the factors (to the weights' dtype), the delta and the sum: its bound has a term for each.
    """
    u, fp32 = torch.finfo(torch.bfloat16).eps / 2, 1e-6
    folders = {"one": save_adapter(open_tiny(name, tiny_root), tmp_path / "one", seed=1)}
    stock = Stock(open_tiny(name, tiny_root, torch.bfloat16), folders)
    stock.fuse()
    module = open_tiny(name, tiny_root, torch.bfloat16).transformer
    base = {key: value.double() for key, value in module.state_dict().items()}
    adapters = {"one": read_adapter(folders["one"], {"transformer": module})}
    MergedWeights(module).set(edits_of("transformer", adapters, {"one": 1.0}))
    ours, fused = module.state_dict(), stock.weights()
    total = {"ours": 0.0, "stock": 0.0}
    for key, change in adapters["one"].components["transformer"].items():
        up, down = change.up.flatten(1).double(), change.down.flatten(1).double()
        exact = base[key] + (up @ down * change.scaling(1.0)).view(change.shape)
        terms = (up.abs() @ down.abs() * change.scaling(1.0)).view(change.shape)  # the sizes of what the sums add up
        error = {"ours": (ours[key].double() - exact).abs(), "stock": (fused[key].double() - exact).abs()}
        slack = fp32 * (base[key].abs() + terms)
        assert (error["ours"] <= u * exact.abs() + slack).all(), key
        delta_error = (2 * u + u**2) * terms + u * (1 + u) ** 2 * terms
        assert (error["stock"] <= delta_error + u * (exact.abs() + delta_error) + slack).all(), key
        total = {who: total[who] + error[who].sum().item() for who in total}
    assert total["ours"] < total["stock"]


@pytest.mark.parametrize("name", ["sd3", "wan", "pixart"])
def test_convolutions_differ_from_stock_by_the_order_of_sums_only(name: str, tiny_root: Path, tmp_path: Path) -> None:
    """peft multiplies a convolution's factors with a convolution, which may add up in another order than a product."""
    pipeline = open_tiny(name, tiny_root)
    folder = save_adapter(pipeline, tmp_path / "one", seed=1, targets=CONVOLUTIONS)
    adapters = {"one": read_adapter(folder, modules_of(pipeline))}
    stock = Stock(open_tiny(name, tiny_root), {"one": folder})
    stock.fuse()
    MergedWeights(pipeline.transformer).set(edits_of("transformer", adapters, {"one": 1.0}))
    ((key, change),) = adapters["one"].components["transformer"].items()
    terms = (change.up.flatten(1).abs() @ change.down.flatten(1).abs() * change.scaling(1.0)).view(change.shape)
    fused = stock.weights()[key]
    error = (pipeline.transformer.get_parameter(key) - fused).abs()
    assert (error <= 2**-23 * (change.rank + 2) * (terms + fused.abs())).all()


def test_inference_tensors_are_replaced_once_by_normal_copies(tiny_root: Path, tmp_path: Path) -> None:
    folder = save_adapter(open_tiny("flux", tiny_root), tmp_path / "one", seed=1)
    with torch.inference_mode():
        pipeline = open_tiny("flux", tiny_root)
        for component in modules_of(pipeline).values():
            component.to(torch.bfloat16)  # makes every weight an inference tensor
    module = pipeline.transformer
    base = {key: value.clone() for key, value in module.state_dict().items()}
    assert all(parameter.is_inference() for parameter in module.parameters())
    adapters = {"one": read_adapter(folder, {"transformer": module})}
    place = MergedWeights(module)
    edits = edits_of("transformer", adapters, {"one": 1.0})
    with torch.inference_mode():
        place.set(edits)
    replaced = {key: module.get_parameter(key) for key in edits.terms}
    assert not any(parameter.is_inference() for parameter in replaced.values())
    place.set(Edits())
    assert all(torch.equal(value, base[key]) for key, value in module.state_dict().items())
    for active in ({"one": 0.5}, {"one": 1.0}, {}):
        with torch.inference_mode(bool(active)):
            place.set(edits_of("transformer", adapters, active))
    again = {key: module.get_parameter(key) for key in edits.terms}
    assert all(again[key] is replaced[key] for key in replaced), "no further copies"
    expected = open_tiny("flux", tiny_root, torch.bfloat16).transformer.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in module.state_dict().items())


def test_reconfiguration_makes_no_clones_in_the_steady_state(tiny_root: Path, tmp_path: Path) -> None:
    folders = two_adapters("flux", tiny_root, tmp_path)
    pipeline = open_tiny("flux", tiny_root)
    module, modules = pipeline.transformer, modules_of(pipeline)
    adapters = {key: read_adapter(folder, modules) for key, folder in folders.items()}
    place = MergedWeights(module)
    place.set(edits_of("transformer", adapters, BOTH))
    addresses = {key: value.data_ptr() for key, value in module.state_dict().items()}
    kept = place.kept_bytes
    for active in ({"one": 1.0}, {}, {"two": 1.0}, BOTH):
        with torch.inference_mode():
            place.set(edits_of("transformer", adapters, active))
        assert {key: value.data_ptr() for key, value in module.state_dict().items()} == addresses
        assert place.kept_bytes == kept
    touched = {key for adapter in adapters.values() for key in adapter.components["transformer"]}
    assert kept == sum(module.get_parameter(key).nbytes for key in touched)


def test_a_base_that_can_be_read_again_is_not_kept(tiny_root: Path, tmp_path: Path) -> None:
    folder = save_adapter(open_tiny("pixart", tiny_root), tmp_path / "one", seed=1)
    module, stored = open_tiny("pixart", tiny_root).transformer, open_tiny("pixart", tiny_root).transformer.state_dict()
    adapters = {"one": read_adapter(folder, {"transformer": module})}
    place = MergedWeights(module, base=lambda name, rows, columns: stored[name][rows, columns])
    place.set(edits_of("transformer", adapters, {"one": 1.0}))
    assert place.kept_bytes == 0
    assert any(not torch.equal(value, stored[key]) for key, value in module.state_dict().items())
    place.set(Edits())
    assert all(torch.equal(value, stored[key]) for key, value in module.state_dict().items())


def test_a_base_that_is_not_what_was_loaded_is_kept(tiny_root: Path, tmp_path: Path) -> None:
    """Of one weight the file holds other bits than the module, as where a library computed on what it read."""
    folder = save_adapter(open_tiny("pixart", tiny_root), tmp_path / "one", seed=1)
    module, stored = open_tiny("pixart", tiny_root).transformer, open_tiny("pixart", tiny_root).transformer.state_dict()
    edits = edits_of("transformer", {"one": read_adapter(folder, {"transformer": module})}, {"one": 1.0})
    base = {key: value.clone() for key, value in module.state_dict().items()}
    other = next(iter(edits.terms))
    stored[other] = -stored[other]
    place = MergedWeights(module, base=lambda name, rows, columns: stored[name][rows, columns])
    for active in (edits, Edits(), edits, Edits()):
        place.set(active)
    assert place.kept_bytes == base[other].nbytes
    assert all(torch.equal(value, base[key]) for key, value in module.state_dict().items())


def test_the_runner_keeps_no_base_and_notices_a_replaced_file(tiny_root: Path, tmp_path: Path) -> None:
    adapters = {key: str(folder) for key, folder in two_adapters("flux", tiny_root, tmp_path).items()}
    path = shutil.copytree(tiny.build("flux", tiny_root), tmp_path / "model")
    config = load_config(None, [f"model.path={path}", f"lora=[{{path: {adapters['one']}, name: one}}]"])
    pipeline = open_pipeline(config, World(0, 1, torch.device("cpu")))
    module = pipeline.stock.transformer
    base = {key: value.clone() for key, value in module.state_dict().items()}
    place = pipeline.adapters._places["transformer"]
    for active in ({"one": 1.0}, {}, {"one": 0.5}):
        pipeline.adapters.set(active)
        assert isinstance(place, MergedWeights) and place.kept_bytes == 0
        assert all(torch.equal(value, base[key]) for key, value in module.state_dict().items()) == (not active)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    for file in (path / "transformer").glob("*.safetensors"):
        shutil.copy(file, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)
    with pytest.raises(StoreError, match="was changed or replaced"):
        pipeline.adapters.set({})
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_a_merge_that_fails_half_way_leaves_what_was_there(tiny_root: Path, tmp_path: Path) -> None:
    folders = two_adapters("sd3", tiny_root, tmp_path)
    pipeline = open_tiny("sd3", tiny_root)
    module, modules = pipeline.transformer, modules_of(pipeline)
    stored = {key: value.clone() for key, value in module.state_dict().items()}
    adapters = {key: read_adapter(folder, modules) for key, folder in folders.items()}
    fails_at = None

    def base(name: str, rows: slice, columns: slice) -> torch.Tensor:
        nonlocal fails_at
        if name == fails_at:
            fails_at = None
            raise OSError("the disk is gone")
        return stored[name][rows, columns]

    place = MergedWeights(module, base=base)
    place.set(edits_of("transformer", adapters, {"one": 1.0}))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    edits = edits_of("transformer", adapters, {"two": 1.0})
    fails_at = sorted(edits.terms)[len(edits.terms) // 2]
    with pytest.raises(OSError, match="disk is gone"):
        place.set(edits)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_the_arithmetic_runs_on_the_device_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that rest on the host go there and come back. The device is meta, where nothing can be computed."""
    elsewhere, module = torch.device("meta"), torch.nn.Linear(4, 4, bias=False)
    change = LowRank(torch.ones(2, 4), torch.ones(4, 2), 2.0)

    def write(out: torch.Tensor, base: torch.Tensor, terms: Any, origin: Any) -> torch.Tensor:
        assert out.device == base.device == elsewhere
        return torch.full(base.shape, float(len(terms)))

    monkeypatch.setattr(lora.merged, "write_merged", write)
    base = module.weight.detach().clone()
    place = MergedWeights(module, base=lambda name, rows, columns: base[rows, columns], device=elsewhere)
    place.set(Edits({"weight": ((change, 1.0), (change, 0.5))}))
    assert torch.equal(module.weight, torch.full((4, 4), 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_slice_has_the_bits_of_the_whole(dtype: torch.dtype, tmp_path: Path) -> None:
    """Slices that begin and end anywhere, of a weight of several tiles; and a convolution, sliced by channels."""
    from lora.adapter import LowRank

    generator = torch.Generator().manual_seed(0)
    rows, columns = 2 * TILE + 100, TILE + 700
    base = torch.randn(rows, columns, generator=generator).to(dtype)
    change = LowRank(
        torch.randn(16, columns, generator=generator), torch.randn(rows, 16, generator=generator), alpha=8.0
    )
    whole = merged(base, ((change, 0.3),))
    for top, bottom in ((0, 1), (5, 1030), (1000, 2100), (2047, 2148)):
        assert torch.equal(merged(base[top:bottom], ((change, 0.3),), (top, 0)), whole[top:bottom])
    for left, right in ((0, 3), (513, 1200), (1024, 1724)):
        assert torch.equal(merged(base[:, left:right], ((change, 0.3),), (0, left)), whole[:, left:right])
    reference = base.double() + change.up.double() @ change.down.double() * change.scaling(0.3)
    torch.testing.assert_close(whole.double(), reference, rtol=torch.finfo(dtype).eps, atol=1e-4)

    kernel = nn.Conv2d(6, 5, 3).weight.data.to(dtype).to(memory_format=torch.channels_last)
    change = LowRank(torch.randn(2, 6, 3, 3, generator=generator), torch.randn(5, 2, 1, 1, generator=generator), 2.0)
    whole = merged(kernel, ((change, 1.0),))
    assert whole.stride() == kernel.stride()
    assert torch.equal(merged(kernel[:, 2:5], ((change, 1.0),), (0, 2)), whole[:, 2:5])
    assert torch.equal(merged(kernel[1:], ((change, 1.0),), (1, 0)), whole[1:])
