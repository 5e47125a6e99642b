"""Whatever format an adapter comes in, each of its tensors is applied as stock applies it, or named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora import Adapter, AdapterError, BesideLayers, MergedWeights, edits_of, read_adapter
from lora.origins import Origins, origins_of
from runner.config import adapter_name, load_config
from tests.lora.lora_files import Stock, make_factors, modules_of, open_tiny, picture

Tensors = dict[str, torch.Tensor]
QKV = r"transformer_blocks\.0\.attn\.(to_q|to_k|to_v)"


def pair(name: str, out: int, into: int, *, alpha: float | None = None, rank: int = 4) -> Tensors:
    """One layer's factors, as kohya's trainer names them."""
    generator = torch.Generator().manual_seed(out + into)
    tensors = {
        f"{name}.lora_down.weight": torch.randn(rank, into, generator=generator) * 0.3,
        f"{name}.lora_up.weight": torch.randn(out, rank, generator=generator) * 0.3,
    }
    return tensors if alpha is None else {**tensors, f"{name}.alpha": torch.tensor(alpha)}


def kohya(pipeline: Any) -> Tensors:
    """Of a Flux: one fused layer of the DiT, with an alpha that no power of two divides by the rank."""
    dim = pipeline.transformer.inner_dim
    return pair("lora_unet_double_blocks_0_img_attn_qkv", 3 * dim, dim, alpha=3.0)


def kohya_text_encoder(pipeline: Any, prefix: str = "lora_te1_text_model_encoder_layers_0_") -> Tensors:
    """All that kohya's trainer adapts of a CLIP's layer."""
    config = pipeline.text_encoder.config
    hidden, inner = config.hidden_size, config.intermediate_size
    tensors: Tensors = {}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        tensors |= pair(f"{prefix}self_attn_{name}", hidden, hidden, alpha=2.0)
    return {
        **tensors,
        **pair(f"{prefix}mlp_fc1", inner, hidden, alpha=2.0),
        **pair(f"{prefix}mlp_fc2", hidden, inner, alpha=2.0),
    }


def stored(tensors: Tensors, folder: Path, name: str = "adapter.safetensors") -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    return folder / name


def read(file: Path, pipeline: Any, *components: str) -> Adapter:
    return read_adapter(file, modules_of(pipeline), components=components, pipeline_class=type(pipeline))


def expect_stock_bits(name: str, file: Path, root: Path, *, components: set[str], weight: float = 0.7) -> Adapter:
    """Beside the layers and merged into them: the weights and the pictures are those of the pipeline's own loader."""
    stock = Stock(open_tiny(name, root), {"one": file})
    stock.set({"one": weight})
    beside, merged = open_tiny(name, root), open_tiny(name, root)
    base = picture(beside, name)
    adapter = read(file, beside)
    assert set(adapter.components) == components
    for component in components:
        edits = edits_of(component, {"one": adapter}, {"one": weight})
        BesideLayers(modules_of(beside)[component], torch.device("cpu")).set(edits)
        MergedWeights(modules_of(merged)[component]).set(edits)
    made = picture(beside, name)
    assert np.array_equal(made, picture(stock.pipeline, name)) and not np.array_equal(made, base)
    stock.fuse()
    assert np.array_equal(picture(merged, name), picture(stock.pipeline, name))
    for component in components:
        fused, ours = stock.weights(component), modules_of(merged)[component].state_dict()
        assert all(torch.equal(tensor, fused[key]) for key, tensor in ours.items())
    return adapter


def test_kohya_factors_of_a_text_encoder_are_applied(tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("flux", tiny_root)
    file = stored(kohya(pipeline) | kohya_text_encoder(pipeline), tmp_path)
    adapter = expect_stock_bits("flux", file, tiny_root, components={"transformer", "text_encoder"})
    assert adapter.read_as == "kohya's names, converted by diffusers"
    assert len(adapter.components["text_encoder"]) == 6 and len(adapter.components["transformer"]) == 3


@pytest.mark.parametrize("encoder", ["lora_te2_text_model_encoder_layers_0_", "lora_te3_encoder_block_0_layer_"])
def test_kohya_factors_that_the_converter_drops_are_named(encoder: str, tiny_root: Path, tmp_path: Path) -> None:
    """Stock reads such a file without a word, and leaves out all of its T5's part."""
    pipeline = open_tiny("flux", tiny_root)
    dropped = kohya_text_encoder(pipeline, encoder)
    file = stored(kohya(pipeline) | dropped, tmp_path)
    with pytest.raises(
        AdapterError, match=rf"read as kohya's names.*{len(dropped)} of 21 tensors .*nothing.*{encoder}"
    ):
        read(file, pipeline)
    assert set(read(file, pipeline, "transformer").components) == {"transformer"}, "where only that is asked for"


def test_factors_that_lose_their_names_are_named(tiny_root: Path, tmp_path: Path) -> None:
    """Of a text encoder's attention alone, stock recognises no format: it renames the factors to what is no layer."""
    pipeline = open_tiny("flux", tiny_root)
    parts = {key: value for key, value in kohya_text_encoder(pipeline).items() if "q_proj" in key or "fc1" in key}
    with pytest.raises(AdapterError, match=r"text_encoder: 2 are no LoRA factors: .*to_q_lora"):
        read(stored(kohya(pipeline) | parts, tmp_path), pipeline)


def test_an_alpha_that_the_converter_drops_is_named(tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("flux", tiny_root)
    dim = pipeline.transformer.inner_dim
    last = pair("lora_unet_final_layer_linear", 16, dim, alpha=1.0)
    with pytest.raises(AdapterError, match=r"1 of 6 tensors .*nothing.*lora_unet_final_layer_linear\.alpha"):
        read(stored(kohya(pipeline) | last, tmp_path), pipeline)


def test_what_would_change_nothing_may_be_dropped(tiny_root: Path, tmp_path: Path) -> None:
    """Trainers write zeros for a text encoder that they did not train; converters look for that."""
    pipeline = open_tiny("flux", tiny_root)
    zeros = {key: torch.zeros_like(value) for key, value in kohya_text_encoder(pipeline, "lora_te3_block_0_").items()}
    assert set(read(stored(kohya(pipeline) | zeros, tmp_path), pipeline).components) == {"transformer"}


def test_one_format_that_hides_another_is_named(tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("flux", tiny_root)
    dim = pipeline.transformer.inner_dim
    both = kohya(pipeline) | pair("transformer.transformer_blocks.0.attn.to_q", dim, dim)
    with pytest.raises(AdapterError, match=r"3 of 5 tensors .*nothing.*lora_unet_double_blocks_0_img_attn_qkv"):
        read(stored(both, tmp_path), pipeline)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_alphas_of_each_layer_count_in_their_own_precision(dtype: torch.dtype, tiny_root: Path, tmp_path: Path) -> None:
    """Stock computes weight * alpha / rank with the tensor that the file holds."""
    factors = make_factors(open_tiny("flux", tiny_root).transformer, seed=1, rank=3, targets=QKV)
    layers = {key.partition(".lora_")[0] for key in factors}
    alphas = {f"{layer}.alpha": torch.tensor(2.3 + i, dtype=dtype) for i, layer in enumerate(sorted(layers))}
    file = stored({f"transformer.{key}": value for key, value in (factors | alphas).items()}, tmp_path)
    adapter = expect_stock_bits("flux", file, tiny_root, components={"transformer"})
    assert adapter.read_as == "diffusers' names"


def diffusers_named(pipeline: Any, targets: str = QKV, **alphas: float) -> Tensors:
    factors = make_factors(pipeline.transformer, seed=1, targets=targets)
    named = {f"transformer.{key}": value for key, value in factors.items()}
    return named | {f"transformer.{layer}.alpha": torch.tensor(alpha) for layer, alpha in alphas.items()}


def test_alphas_of_some_layers_only_are_refused(tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("flux", tiny_root)
    tensors = diffusers_named(pipeline, **{"transformer_blocks.0.attn.to_k": 8.0})
    with pytest.raises(AdapterError, match=r"2 have no alpha, where others have one.*attn\.to_q, .*attn\.to_v"):
        read(stored(tensors, tmp_path), pipeline)


def test_alphas_that_stock_takes_for_another_layers_are_refused(tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("flux", tiny_root)
    targets = r"proj_out|single_transformer_blocks\.0\.proj_out"
    mixed = {"proj_out": 3.0, "single_transformer_blocks.0.proj_out": 4.0}
    with pytest.raises(AdapterError, match=r"mixes up: single_transformer_blocks\.0\.proj_out"):
        read(stored(diffusers_named(pipeline, targets, **mixed), tmp_path), pipeline)
    same = diffusers_named(pipeline, targets, **dict.fromkeys(mixed, 3.0))
    expect_stock_bits("flux", stored(same, tmp_path), tiny_root, components={"transformer"})


def test_different_alphas_in_a_text_encoder_are_refused(tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("flux", tiny_root)
    factors = make_factors(pipeline.text_encoder, seed=1, targets=r"encoder\.layers\.0\.self_attn\.(q_proj|out_proj)")
    named = {f"text_encoder.text_model.{key}": value for key, value in factors.items()}

    def alphas(*values: float) -> Tensors:
        layers = sorted({key.partition(".lora_")[0] for key in named})
        return {f"{layer}.alpha": torch.tensor(value) for layer, value in zip(layers, values, strict=True)}

    with pytest.raises(AdapterError, match="2 have different alphas in a text encoder"):
        read(stored(named | alphas(2.0, 3.0), tmp_path), pipeline)
    expect_stock_bits("flux", stored(named | alphas(2.0, 2.0), tmp_path), tiny_root, components={"text_encoder"})


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", ""])
def test_original_names_are_converted_also_below_a_components_name(
    prefix: str, tiny_root: Path, tmp_path: Path
) -> None:
    pipeline = open_tiny("hunyuanvideo", tiny_root)
    dim = pipeline.transformer.transformer_blocks[0].attn.to_q.in_features
    tensors = pair(f"{prefix}double_blocks.0.img_attn_qkv", 3 * dim, dim)
    tensors = {key.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): t for key, t in tensors.items()}
    adapter = expect_stock_bits("hunyuanvideo", stored(tensors, tmp_path), tiny_root, components={"transformer"})
    assert adapter.read_as == "a trainer's or the original model's names, converted by diffusers"
    assert len(adapter.components["transformer"]) == 3


def test_stock_conversion_comes_before_the_names(tiny_root: Path, tmp_path: Path) -> None:
    """Where both could read a file: diffusers multiplies alphas into the factors, which rounds otherwise."""
    pipeline = open_tiny("qwenimage", tiny_root)
    factors = make_factors(pipeline.transformer, seed=1, rank=3, targets=QKV)
    layers = sorted({key.partition(".lora_")[0] for key in factors})
    file = stored(factors | {f"{layer}.alpha": torch.tensor(2.3) for layer in layers}, tmp_path)
    expect_stock_bits("qwenimage", file, tiny_root, components={"transformer"})


def test_names_are_read_where_the_conversion_loses_something(tiny_root: Path, tmp_path: Path) -> None:
    """For Flux, factors called `lora_down` make a kohya's file, of which only the transformer's are kept."""
    pipeline = open_tiny("flux", tiny_root)
    dim, hidden = pipeline.transformer.inner_dim, pipeline.text_encoder.config.hidden_size
    of_encoder = pair("text_encoder.encoder.layers.0.self_attn.q_proj", hidden, hidden)
    of_transformer = pair("transformer.transformer_blocks.0.attn.to_q", dim, dim)
    adapter = read(stored(of_encoder | of_transformer, tmp_path), pipeline)
    assert {name: len(part) for name, part in adapter.components.items()} == {"transformer": 1, "text_encoder": 1}


def test_two_names_of_one_factor_are_refused(tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("sd3", tiny_root)
    tensors = diffusers_named(pipeline)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    twice = {f"{layer}.lora_down.weight": tensors[f"{layer}.lora_A.weight"] * 2}
    with pytest.raises(AdapterError, match=r"1 have two factors for one side \(down\): .*attn\.to_q"):
        read(stored(tensors | twice, tmp_path), pipeline)


class _Converter:
    """A pipeline's class whose conversion fails."""

    error: Exception = ValueError()

    @classmethod
    def lora_state_dict(cls, tensors: Tensors, **_: Any) -> Tensors:
        for tensor in tensors.values():
            tensor.mul_(0)
        raise cls.error


@pytest.mark.parametrize("kind", [AssertionError, AttributeError, NotImplementedError, KeyError, StopIteration])
def test_whatever_a_converter_raises_is_about_the_file(kind: type[Exception], tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("sd3", tiny_root)
    converter = type("Failing", (_Converter,), {"error": kind("its own words\nand more")})
    file = stored({"odd.names.weight": torch.ones(2, 2)}, tmp_path)
    with pytest.raises(
        AdapterError, match=rf"diffusers cannot convert it .*{kind.__name__}: .*its own words"
    ) as caught:
        read_adapter(file, modules_of(pipeline), pipeline_class=converter)
    assert len(str(caught.value).splitlines()) == 1 and "odd.names.weight" in str(caught.value)
    named = stored(diffusers_named(pipeline), tmp_path)
    adapter = read_adapter(named, modules_of(pipeline), pipeline_class=converter)
    assert all(change.down.any() for change in adapter.components["transformer"].values()), "as stored, not as it left"


def test_a_converter_that_asserts_is_no_fault(tiny_root: Path, tmp_path: Path) -> None:
    pipeline = open_tiny("flux", tiny_root)
    mixture = pair("lora_transformer_single_transformer_blocks_0_attn_to_q", 32, 32) | pair("other", 32, 32)
    with pytest.raises(AdapterError, match=r"diffusers cannot convert it .*AssertionError"):
        read(stored(mixture, tmp_path), pipeline)


def test_settings_beside_a_file_are_read_where_peft_reads_them(tiny_root: Path, tmp_path: Path) -> None:
    """diffusers' loaders do not look at `adapter_config.json`."""
    pipeline = open_tiny("flux", tiny_root)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 12}))
    ours = diffusers_named(pipeline)
    for name, tensors, alpha in (
        ("other.safetensors", ours, 4),
        ("adapter_model.safetensors", ours, 12),
        ("peft.safetensors", {key.replace("transformer.", "base_model.model.", 1): t for key, t in ours.items()}, 12),
    ):
        adapter = read(stored(tensors, tmp_path, name), pipeline)
        assert {change.alpha for change in adapter.components["transformer"].values()} == {alpha}, name
        assert adapter.read_as == ("peft's names" if name.startswith("peft") else "diffusers' names")
    expect_stock_bits("flux", tmp_path / "other.safetensors", tiny_root, components={"transformer"})


def test_a_folder_keeps_the_version_in_its_name() -> None:
    lora = load_config(None, ["lora=[{path: some/style-v1.5}, {path: style-v1.6}, {path: a/b-v2.0.safetensors}]"]).lora
    assert [adapter_name(one) for one in lora.adapters] == ["style-v1.5", "style-v1.6", "b-v2.0"]


def test_origins_follow_arithmetic_and_assignment() -> None:
    parts = {name: torch.randn(4, 4) for name in "abcd"} | {"alpha": torch.tensor(2.0), "dropped": torch.ones(3)}
    with Origins(parts) as origins:
        empty = torch.zeros(8, 4)
        empty[:4] = parts["a"]
        empty[4:] = parts["b"] * parts["alpha"].item()
        first, second = torch.cat([parts["c"], parts["c"]]).chunk(2)
        second.mul_(parts["d"])
        bool((parts["dropped"] == 0).all().item())
    assert origins_of([empty]) == {"a", "b"} and origins_of([first]) == {"c"} and origins_of([second]) == {"c", "d"}
    assert origins.as_numbers == {"alpha"}
    assert not origins_of([nn.Linear(2, 2).weight * 2]), "only while it is open"
