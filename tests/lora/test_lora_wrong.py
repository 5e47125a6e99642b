"""A wrong adapter is refused with the names of its keys, and nothing is changed; other formats are read right."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora import AdapterError, MergedWeights, edits_of, read_adapter
from tests.lora.lora_files import LINEAR, Stock, make_factors, merged, modules_of, open_tiny, picture, save_adapter

LAYER = "transformer_blocks.0.attn.to_q"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def good(tiny_root: Path, tmp_path: Path) -> tuple[Any, Tensors]:
    pipeline = open_tiny("flux", tiny_root)
    folder = save_adapter(pipeline, tmp_path / "good", seed=1)
    return pipeline, load_file(folder / "pytorch_lora_weights.safetensors")


def down(tensors: Tensors) -> torch.Tensor:
    return tensors[f"transformer.{LAYER}.lora_A.weight"]


CHANGES: dict[str, tuple[Callable[[Tensors], Mapping[str, torch.Tensor]], str]] = {
    "no such layer": (
        lambda t: {f"transformer.transformer_blocks.77.attn.to_q.lora_{s}.weight": down(t) for s in "AB"},
        r"1 match nothing in FluxTransformer2DModel: transformer_blocks\.77\.attn\.to_q",
    ),
    "no such component": (
        lambda t: {"unet.mid.to_q.lora_A.weight": down(t)},
        r"match nothing in .*: unet\.mid\.to_q\.lora_A\.weight",
    ),
    "another rank": (
        lambda t: {f"transformer.{LAYER}.lora_A.weight": down(t)[:2].clone()},
        rf"different ranks, such as \[2, 32\] and \[32, 4\]: {re.escape(LAYER)}",
    ),
    "another shape": (
        lambda t: {f"transformer.{LAYER}.lora_A.weight": down(t)[:, :7].clone()},
        rf"wrong shape, .* \[4, 7\] for \[32, 32\]: {re.escape(LAYER)}",
    ),
    "DoRA": (
        lambda t: {f"transformer.{LAYER}.lora_magnitude_vector": torch.ones(32)},
        rf"DoRA parts are not supported: transformer\.{re.escape(LAYER)}\.lora_magnitude_vector",
    ),
    "old DoRA": (lambda t: {f"transformer.{LAYER}.dora_scale": torch.ones(32)}, rf"DoRA .*{re.escape(LAYER)}"),
    "bias": (
        lambda t: {f"transformer.{LAYER}.lora_B.bias": torch.ones(32)},
        rf"bias .*{re.escape(LAYER)}\.lora_B\.bias",
    ),
    "bias difference": (
        lambda t: {f"transformer.{LAYER}.diff_b": torch.ones(32)},
        rf"bias .*{re.escape(LAYER)}\.diff_b",
    ),
    "difference": (lambda t: {f"transformer.{LAYER}.diff": torch.ones(32)}, rf"difference .*{re.escape(LAYER)}\.diff"),
    "LoKr": (lambda t: {f"transformer.{LAYER}.lokr_w1": torch.ones(4, 4)}, r"LoKr.*lokr_w1"),
    "half a pair": (
        lambda t: {"transformer.proj_out.lora_A.weight": down(t)},
        r"lack a factor \(up\): proj_out",
    ),
    "a norm": (
        lambda t: {f"transformer.transformer_blocks.0.attn.norm_q.lora_{s}.weight": down(t) for s in "AB"},
        r"neither linear .*: transformer_blocks\.0\.attn\.norm_q",
    ),
    "a whole weight": (
        lambda t: {f"transformer.{LAYER}.weight": down(t)},
        rf"no LoRA factors: {re.escape(LAYER)}\.weight",
    ),
    "alpha alone": (lambda t: {"transformer.proj_out.alpha": torch.tensor(4.0)}, r"alphas without factors: proj_out"),
    "not finite": (
        lambda t: {f"transformer.{LAYER}.lora_A.weight": down(t) * float("nan")},
        rf"no finite numbers: {re.escape(LAYER)}",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_part_is_named_and_nothing_is_changed(change: str, good: tuple[Any, Tensors], tmp_path: Path) -> None:
    pipeline, tensors = good
    make, message = CHANGES[change]
    file = tmp_path / "wrong.safetensors"
    save_file({key: value.clone() for key, value in {**tensors, **make(tensors)}.items()}, file)
    before = {key: value.clone() for key, value in pipeline.transformer.state_dict().items()}
    with pytest.raises(AdapterError, match=message) as caught:
        read_adapter(file, modules_of(pipeline), pipeline_class=type(pipeline))
    assert str(caught.value).startswith(str(file))
    assert all(torch.equal(value, before[key]) for key, value in pipeline.transformer.state_dict().items())


def test_everything_wrong_is_listed_at_once(good: tuple[Any, Tensors], tmp_path: Path) -> None:
    pipeline, tensors = good
    file = tmp_path / "wrong.safetensors"
    wrong = {**tensors, **CHANGES["another rank"][0](tensors), **CHANGES["half a pair"][0](tensors)}
    save_file({key: value.clone() for key, value in wrong.items()}, file)
    with pytest.raises(AdapterError, match=r"lack a factor .*different ranks") as caught:
        read_adapter(file, modules_of(pipeline))
    assert len(caught.value.problems) == 2


def test_another_models_adapter_is_refused(good: tuple[Any, Tensors], tiny_root: Path, tmp_path: Path) -> None:
    pipeline, _ = good
    other = save_adapter(open_tiny("qwenimage", tiny_root), tmp_path / "other", seed=1)
    with pytest.raises(AdapterError, match="match nothing in FluxTransformer2DModel"):
        read_adapter(other, modules_of(pipeline), pipeline_class=type(pipeline))
    without_prefix = save_adapter(open_tiny("dit", tiny_root), tmp_path / "dit", seed=1)
    with pytest.raises(AdapterError, match=r"cannot convert|match nothing"):
        read_adapter(without_prefix, modules_of(pipeline), pipeline_class=type(pipeline))


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_dora", True), ("lora_bias", True), ("bias", "all"), ("peft_type", "LOHA"), ("init_lora_weights", "pissa")],
)
def test_settings_that_mean_more_than_lora_are_refused(key: str, value: Any, tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("pixart", tiny_root)
    folder = save_adapter(pipeline, tmp_path / "one", seed=1, **{key: value})
    with pytest.raises(AdapterError, match=f"{key}={value}"):
        read_adapter(folder, modules_of(pipeline))


def test_settings_of_another_rank_are_refused(tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("pixart", tiny_root)
    folder = save_adapter(pipeline, tmp_path / "one", seed=1)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 5, "lora_alpha": 1}))
    with pytest.raises(AdapterError, match="rank 4 where the settings say 5"):
        read_adapter(folder, modules_of(pipeline))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.bin"], "a.bin.*pickle"),
        ([], "no .safetensors"),
        (["a.safetensors", "b.safetensors"], "several files.*a.safetensors, b.safetensors"),
        (["a.safetensors"], "pickle"),
    ],
)
def test_folders_that_hold_no_adapter_are_refused(names: list[str], message: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"\x80\x04junk")
    with pytest.raises(AdapterError, match=message):
        read_adapter(tmp_path, {})
    for name in [*names, "nowhere.safetensors"]:
        with pytest.raises(AdapterError, match=re.escape(name)):
            read_adapter(tmp_path / name, {})


def test_shared_weights_are_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[1].weight = module[0].weight
    with pytest.raises(AdapterError, match="share their weight"):
        _read_bare(module, {f"0.lora_{s}.weight": torch.ones(4, 4) for s in "AB"}, tmp_path)


def _read_bare(module: nn.Module, tensors: Tensors, folder: Path) -> Any:
    file = folder / "bare.safetensors"
    save_file(tensors, file)
    return read_adapter(file, {"transformer": module})


def test_every_way_of_naming_factors_gives_the_same_change(tmp_path: Path) -> None:
    module = nn.ModuleDict({"to_q": nn.Linear(8, 6), "to_out": nn.ModuleList([nn.Linear(6, 5)])})
    factors = make_factors(module, seed=1, rank=2, targets=".*")
    expected = _read_bare(module, factors, tmp_path).components["transformer"]
    assert {change.alpha for change in expected.values()} == {2.0}

    def renamed(down: str, up: str, prefix: str = "") -> Tensors:
        pairs = ((".lora_A", down), (".lora_B", up))
        return {prefix + key.replace(*pairs[0]).replace(*pairs[1]): value for key, value in factors.items()}

    for tensors in (
        renamed(".lora_A", ".lora_B", "base_model.model."),
        renamed(".lora_A", ".lora_B", "transformer."),
        renamed(".lora_A.default", ".lora_B.default", "transformer."),
        renamed(".lora.down", ".lora.up", "transformer."),
        renamed(".lora_down", ".lora_up", "transformer."),
    ):
        found = _read_bare(module, tensors, tmp_path).components["transformer"]
        assert set(found) == set(expected), list(tensors)
        assert all(torch.equal(found[key].up, change.up) for key, change in expected.items())
        assert all(torch.equal(found[key].down, change.down) for key, change in expected.items())
    alphas = {"transformer.to_q.alpha": torch.tensor(5.0), "transformer.to_out.0.alpha": torch.tensor(3.0)}
    tensors = renamed(".lora_down", ".lora_up", "transformer.") | alphas
    found = _read_bare(module, tensors, tmp_path).components["transformer"]
    assert (found["to_q.weight"].alpha, found["to_out.0.weight"].alpha) == (5.0, 3.0)


def test_patterns_of_alpha_and_rank_are_pefts(tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("sd3", tiny_root)
    patterns = {"alpha_pattern": {"to_k": 1.0, r"transformer_blocks\.0\.attn\.to_v": 11.0}}
    folder = save_adapter(pipeline, tmp_path / "one", seed=1, targets=LINEAR, **patterns)
    adapters = {"one": read_adapter(folder, modules_of(pipeline))}
    stock = Stock(open_tiny("sd3", tiny_root), {"one": folder})
    stock.fuse()
    MergedWeights(pipeline.transformer).set(edits_of("transformer", adapters, {"one": 1.0}))
    expected = stock.weights()
    assert all(torch.equal(value, expected[key]) for key, value in pipeline.transformer.state_dict().items())
    alphas = {change.alpha for change in adapters["one"].components["transformer"].values()}
    assert alphas == {1.0, 6.0, 11.0}


def test_a_kohya_file_is_read_through_diffusers_own_conversion(tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("flux", tiny_root)
    dim = pipeline.transformer.inner_dim
    generator = torch.Generator().manual_seed(0)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(4, dim, generator=generator),
        f"{name}.lora_up.weight": torch.randn(3 * dim, 4, generator=generator),
        f"{name}.alpha": torch.tensor(2.0),
    }
    file = tmp_path / "kohya.safetensors"
    save_file(tensors, file)
    adapters = {"one": read_adapter(file, modules_of(pipeline), pipeline_class=type(pipeline))}
    stock = Stock(open_tiny("flux", tiny_root), {"one": file})
    stock.fuse()
    MergedWeights(pipeline.transformer).set(edits_of("transformer", adapters, {"one": 1.0}))
    expected = stock.weights()
    changed = [key for key, value in adapters["one"].components["transformer"].items() if value.up.any()]
    assert len(changed) == 3
    assert all(torch.equal(value, expected[key]) for key, value in pipeline.transformer.state_dict().items())
    with pytest.raises(AdapterError, match="match nothing"):
        read_adapter(file, modules_of(pipeline))


def test_components_choose_where_an_adapter_goes(tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("wan22", tiny_root)
    modules = modules_of(pipeline)
    folder = save_adapter(pipeline, tmp_path / "one", seed=1)
    assert set(read_adapter(folder, modules).components) == {"transformer"}
    for components in (["transformer_2"], ["transformer", "transformer_2"]):
        assert list(read_adapter(folder, modules, components=components).components) == components
    bare = tmp_path / "bare.safetensors"
    stored = load_file(folder / "pytorch_lora_weights.safetensors")
    save_file({key.removeprefix("transformer."): value for key, value in stored.items()}, bare)
    with pytest.raises(AdapterError, match="fits transformer, transformer_2 alike; say which in components"):
        read_adapter(bare, modules)
    assert list(read_adapter(bare, modules, components=["transformer_2"]).components) == ["transformer_2"]
    with pytest.raises(AdapterError, match="the model has no unet"):
        read_adapter(folder, modules, components=["unet"])
    flux = open_tiny("flux", tiny_root)
    both = save_adapter(flux, tmp_path / "both", seed=1, text_encoder=True)
    assert set(read_adapter(both, modules_of(flux)).components) == {"transformer", "text_encoder"}
    assert set(read_adapter(both, modules_of(flux), components=["transformer"]).components) == {"transformer"}
    with pytest.raises(AdapterError, match="nothing for vae"):
        read_adapter(both, modules_of(flux), components=["vae"])


def test_the_identity_is_that_of_the_content(good: tuple[Any, Tensors], tmp_path: Path) -> None:
    pipeline, tensors = good
    modules = modules_of(pipeline)
    for name in ("a", "b"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    save_file(tensors | {f"transformer.{LAYER}.lora_A.weight": down(tensors) * 2}, tmp_path / "c.safetensors")
    first, second, third = (read_adapter(tmp_path / f"{name}.safetensors", modules).identity for name in "abc")
    assert first == second != third


def test_weights_that_are_away_are_refused(good: tuple[Any, Tensors], tmp_path: Path) -> None:
    """An offloader's placeholder has no elements: a merge into it would be lost."""
    pipeline, tensors = good
    file = tmp_path / "good.safetensors"
    save_file(tensors, file)
    adapters = {"one": read_adapter(file, modules_of(pipeline))}
    base = picture(pipeline, "flux")
    layer = pipeline.transformer.get_submodule(LAYER)
    weight, layer.weight = layer.weight, nn.Parameter(torch.empty(0))
    with pytest.raises(RuntimeError, match=rf"{LAYER}.weight is \[0\] .* not here"):
        MergedWeights(pipeline.transformer).set(edits_of("transformer", adapters, {"one": 1.0}))
    layer.weight = weight
    assert (picture(pipeline, "flux") == base).all()
    change = adapters["one"].components["transformer"][f"{LAYER}.weight"]
    assert not torch.equal(merged(weight.data, ((change, 1.0),)), weight)
