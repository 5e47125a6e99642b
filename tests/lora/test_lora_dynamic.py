"""Factors beside their layers give the bits of diffusers' `set_adapters`, and of peft where diffusers has no loader."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lora import BesideLayers, Edits, edits_of, read_adapter
from tests.lora.lora_files import WITH_LOADER, WITHOUT_LOADER, Stock, modules_of, open_tiny, picture, save_adapter

FAMILIES = (*WITH_LOADER, *WITHOUT_LOADER)
BOTH = {"one": 0.7, "two": -0.4}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_are_those_of_stock_adapters(name: str, dtype: torch.dtype, tiny_root: Path, tmp_path: Path) -> None:
    ours = open_tiny(name, tiny_root, dtype)
    folders = {
        "one": save_adapter(ours, tmp_path / "one", seed=1, text_encoder=name in ("flux", "sd3")),
        "two": save_adapter(ours, tmp_path / "two", seed=2, rank=8, alpha=3, use_rslora=True, dtype=torch.bfloat16),
    }
    stock = Stock(open_tiny(name, tiny_root, dtype), folders)
    modules = modules_of(ours)
    adapters = {key: read_adapter(folder, modules) for key, folder in folders.items()}
    places = {component: BesideLayers(module, torch.device("cpu")) for component, module in modules.items()}
    base = picture(ours, name)
    names = {component: list(module.state_dict()) for component, module in modules.items()}
    for active in ({"one": 1.0}, BOTH, {"two": 1.5}):
        for component, place in places.items():
            place.set(edits_of(component, adapters, active))
        stock.set(active)
        made = picture(ours, name)
        assert np.array_equal(made, picture(stock.pipeline, name)) and not np.array_equal(made, base), active
    assert names == {component: list(module.state_dict()) for component, module in modules.items()}
    for place in places.values():
        place.set(Edits())
    assert np.array_equal(picture(ours, name), base)


def test_reconfiguration_in_any_mode_keeps_factors_normal_and_in_place(tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("sd3", tiny_root)
    folders = {key: save_adapter(pipeline, tmp_path / key, seed=seed) for seed, key in enumerate(BOTH)}
    adapters = {key: read_adapter(folder, modules_of(pipeline)) for key, folder in folders.items()}
    place = BesideLayers(pipeline.transformer, torch.device("cpu"))
    base = picture(pipeline, "sd3")
    with torch.inference_mode():
        place.set(edits_of("transformer", adapters, BOTH))
    first, held = picture(pipeline, "sd3"), place.device_bytes
    hooks = sum(len(layer._forward_hooks) for layer in pipeline.transformer.modules())
    factors = {id(f) for pair in place._factors.values() for f in pair}
    assert not any(f.is_inference() for pair in place._factors.values() for f in pair)
    for active in ({"one": 2.0}, {}, BOTH):
        place.set(edits_of("transformer", adapters, active))
        assert place.device_bytes == held
        assert {id(f) for pair in place._factors.values() for f in pair} == factors
        assert sum(len(layer._forward_hooks) for layer in pipeline.transformer.modules()) == hooks
    assert np.array_equal(picture(pipeline, "sd3"), first)
    place.close()
    assert not any(layer._forward_hooks for layer in pipeline.transformer.modules())
    assert np.array_equal(picture(pipeline, "sd3"), base) and place.device_bytes == 0


def test_a_layer_whose_weight_is_read_past_its_forward_is_refused() -> None:
    """nn.MultiheadAttention hands `out_proj.weight` to a function: a hook on `out_proj` would never run."""
    module = nn.MultiheadAttention(8, 2)
    place = BesideLayers(module, torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"out_proj.*merge"):
        place.set(Edits({"out_proj.weight": ()}))
