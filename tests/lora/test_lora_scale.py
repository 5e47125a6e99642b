"""A pipeline's `scale` argument acts on adapters beside layers, with the bits that stock adapters give with it."""

import contextvars
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils import scale_lora_layers, unscale_lora_layers
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import nn

from lora import BesideLayers, Edits, LowRank, edits_of, forget_scales, read_adapter
from runner.config import load_config
from runner.errors import UserError
from runner.job.prompts import Prompt
from runner.job.requests import requests_of
from runner.pipeline.open import open_pipeline
from tests import tiny
from tests.lora import test_lora_offloaded as offloaded
from tests.lora.lora_files import Stock, modules_of, open_tiny, picture, save_adapter

ARGUMENTS = {"flux": "joint_attention_kwargs", "sd3": "joint_attention_kwargs", "wan": "attention_kwargs"}
BOTH = {"one": 0.7, "two": -0.4}


def scaled(monkeypatch: pytest.MonkeyPatch, name: str, scale: float | None) -> None:
    """From now on, calls of the family pass this scale; None: no argument."""
    family = tiny.FAMILIES[name]
    call = {key: value for key, value in family.call.items() if key != ARGUMENTS[name]}
    if scale is not None:
        call[ARGUMENTS[name]] = {"scale": scale}
    monkeypatch.setitem(tiny.FAMILIES, name, dataclasses.replace(family, call=call))


def save_two(name: str, root: Path, folder: Path) -> dict[str, Path]:
    """Adapters of the transformer; of Flux and SD3, one is for a text encoder too."""
    pipeline = open_tiny(name, root)
    return {
        "one": save_adapter(pipeline, folder / "one", seed=1, text_encoder=name != "wan"),
        "two": save_adapter(pipeline, folder / "two", seed=2, rank=8, alpha=3, use_rslora=True),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_scale_gives_the_bits_of_stock(
    name: str, dtype: torch.dtype, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = save_two(name, tiny_root, tmp_path)
    ours, stock = open_tiny(name, tiny_root, dtype), Stock(open_tiny(name, tiny_root, dtype), folders)
    modules = modules_of(ours)
    adapters = {key: read_adapter(folder, modules) for key, folder in folders.items()}
    places = {component: BesideLayers(module, torch.device("cpu")) for component, module in modules.items()}
    made = {}
    for scale in (None, 0.3, 1.7, 0, -1):
        scaled(monkeypatch, name, scale)
        stock.set(BOTH)
        for component, place in places.items():
            place.set(edits_of(component, adapters, BOTH))
        made[scale] = picture(ours, name)
        assert np.array_equal(made[scale], picture(stock.pipeline, name)), scale
    assert not any(np.array_equal(made[one], made[other]) for one in made for other in made if one is not other)


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_text_encoders_are_scaled_alike(
    name: str, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With adapters on the text encoder alone, as its share of the file is stock's."""
    folders = {"one": save_two(name, tiny_root, tmp_path)["one"]}
    ours, stock = open_tiny(name, tiny_root), Stock(open_tiny(name, tiny_root), folders)
    adapters = {"one": read_adapter(folders["one"], modules_of(ours), components=["text_encoder"])}
    place = BesideLayers(ours.text_encoder, torch.device("cpu"))
    stock.pipeline.transformer.disable_adapters()
    pictures = []
    for scale in (None, 0.3):
        scaled(monkeypatch, name, scale)
        stock.pipeline.set_adapters(["one"], [{"text_encoder": 0.7}])
        stock.pipeline.transformer.disable_adapters()
        place.set(edits_of("text_encoder", adapters, {"one": 0.7}))
        pictures.append(picture(ours, name))
        assert np.array_equal(pictures[-1], picture(stock.pipeline, name))
    assert not np.array_equal(*pictures)


@pytest.mark.parametrize("row", ["host", "disk, one at a time", "device"])
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_each_request_has_its_own_scale_whatever_the_placement(
    name: str, row: str, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after requests with others, one of which divides by a scale that leaves another number than it found."""
    path = offloaded.built(name, tiny_root)
    folders = {key: path.parent / offloaded.ADAPTERS / name / key for key in BOTH}
    stock = Stock(open_tiny(name, tiny_root), folders)
    pipeline = offloaded.opened(path, "dynamic", *(offloaded.placements(row) if row != "device" else ()))
    for scale in (0.3, None, 0, 0.1, 0.3):
        scaled(monkeypatch, name, scale)
        stock.set(BOTH)
        assert np.array_equal(offloaded.picture(pipeline, name, BOTH), picture(stock.pipeline, name)[0]), scale


def test_without_adapters_a_scale_is_ignored_as_in_stock(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny.build("flux", tiny_root)
    pipeline = open_pipeline(load_config(None, [f"model.path={path}"]), offloaded.ALONE)
    scaled(monkeypatch, "flux", 0.5)
    assert pipeline.adapters.choose(None, "prompt 1", tiny.FAMILIES["flux"].call) == {}
    made = offloaded.picture(pipeline, "flux", {})
    assert np.array_equal(made, picture(open_tiny("flux", tiny_root), "flux")[0])
    scaled(monkeypatch, "flux", None)
    assert np.array_equal(made, offloaded.picture(pipeline, "flux", {}))


@pytest.mark.parametrize("argument", ["joint_attention_kwargs", "attention_kwargs", "cross_attention_kwargs"])
def test_a_merged_adapter_refuses_a_scale_by_name(argument: str, tiny_root: Path) -> None:
    path = offloaded.built("flux", tiny_root)
    merge, beside = (offloaded.opened(path, mode).adapters for mode in ("merge", "dynamic"))
    with pytest.raises(UserError, match=rf"prompt 1: {argument}\.scale=0\.5 has no effect with lora\.mode=merge"):
        merge.choose(None, "prompt 1", {argument: {"scale": 0.5}})
    for harmless in ({argument: {"scale": 1.0}}, {argument: {"other": 0.5}}, {argument: None}, {"scale": 0.5}):
        assert merge.choose(None, "prompt 1", harmless) == {"one": 1.0, "two": 1.0}
    assert merge.choose({}, "prompt 1", {argument: {"scale": 0.5}}) == {}
    assert beside.choose({"one": 1}, "prompt 1", {argument: {"scale": 0.5}}) == {"one": 1}


def test_the_requests_of_a_job_are_checked_before_any_is_made(tiny_root: Path) -> None:
    path = offloaded.built("flux", tiny_root)
    config = load_config(None, ["job.call.joint_attention_kwargs={scale: 0.5}"])
    with pytest.raises(UserError, match=r"joint_attention_kwargs\.scale=0\.5 has no effect with lora\.mode=merge"):
        requests_of([Prompt("a cat")], config.job, offloaded.opened(path, "merge"), {})
    assert requests_of([Prompt("a cat", lora={})], config.job, offloaded.opened(path, "merge"), {})
    (request,) = requests_of([Prompt("a cat")], config.job, offloaded.opened(path, "dynamic"), {})
    (other,) = requests_of([Prompt("a cat")], load_config(None, []).job, offloaded.opened(path, "dynamic"), {})
    assert request.id != other.id, "a scale is another picture"


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "0.5", None, True, [1.0], 10**400])
def test_a_scale_that_is_no_number_is_refused_by_name(scale: Any, tiny_root: Path) -> None:
    adapters = offloaded.opened(offloaded.built("flux", tiny_root), "dynamic").adapters
    with pytest.raises(UserError, match=r"prompt 1: joint_attention_kwargs\.scale is .*finite number"):
        adapters.choose(None, "prompt 1", {"joint_attention_kwargs": {"scale": scale}})


def beside(*changes: tuple[LowRank, float]) -> tuple[nn.Module, BesideLayers]:
    module = nn.Sequential(nn.Linear(8, 6, bias=False))
    place = BesideLayers(module, torch.device("cpu"))
    place.set(Edits({"0.weight": changes}))
    return module, place


def low_rank(alpha: float, rank: int = 3) -> LowRank:
    return LowRank(torch.randn(rank, 8), torch.randn(6, rank), alpha)


def test_scaling_and_unscaling_leave_the_numbers_that_peft_leaves() -> None:
    """In any order, with the divisions that do not undo the multiplications, and the weight that a zero loses."""
    alphas, weights = {"a": 5.0, "b": 0.7}, {"a": 0.1, "b": -1.3}
    module, _ = beside(*((low_rank(alphas[name]), weights[name]) for name in alphas))
    config = LoraConfig(r=3)
    theirs = Linear(nn.Linear(8, 6), config=config, adapter_name="a", r=3, lora_alpha=alphas["a"])
    theirs.update_layer("b", 3, lora_alpha=alphas["b"], config=config)
    theirs.set_adapter(["a", "b"])
    for name, weight in weights.items():
        theirs.set_scale(name, weight)
    (child,) = (layer for layer in module.modules() if hasattr(layer, "scalings"))
    seen = set()
    for scale in (0.3, 1.0, 0.1, 7, 0.3, 0, 0.7, -3):
        for step in (scale_lora_layers, unscale_lora_layers):
            step(module, scale)
            step(theirs, scale)
            assert child.scalings == [theirs.scaling["a"], theirs.scaling["b"]], scale
            seen.add(child.scalings[0])
    assert len(seen) > 8, "some divisions leave another number"
    unscale_lora_layers(module)
    assert child.scalings == [theirs.scaling["a"], theirs.scaling["b"]], "no weight: nothing"
    child.unscale_layer()
    theirs.unscale_layer()
    assert child.scalings == [theirs.scaling["a"], theirs.scaling["b"]]


def test_requests_that_take_turns_in_one_thread_do_not_scale_each_other() -> None:
    change = low_rank(3.0)
    module, _ = beside((change, 1.0))
    x = torch.randn(2, 8)
    expected = {}
    for scale in (0.5, 0.25):
        scale_lora_layers(module, scale)
        expected[scale] = module(x)
        forget_scales()
    first, second = contextvars.Context(), contextvars.Context()
    first.run(scale_lora_layers, module, 0.5)
    second.run(scale_lora_layers, module, 0.25)
    assert torch.equal(first.run(module, x), expected[0.5]) and torch.equal(second.run(module, x), expected[0.25])
    first.run(unscale_lora_layers, module, 0.5)
    assert torch.equal(second.run(module, x), expected[0.25])


def test_the_layers_keep_their_parameters_and_names() -> None:
    module, place = beside((low_rank(3.0), 1.0))
    assert list(module.state_dict()) == ["0.weight"] == [name for name, _ in module.named_parameters()]
    place.close()
    assert not list(module[0].children()) and not module[0]._forward_hooks
