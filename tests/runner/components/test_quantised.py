"""Quantised checkpoints: refused by name where they would be placed, left to their library where they stay whole."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2Model

from runner.components.directory import check_placements, read_directory
from runner.components.source import Source
from runner.components.whole import load_whole
from runner.config import load_config
from runner.errors import UserError
from tests import tiny

BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}
PLACED = ["share=shard", "rest=host", "rest=disk", "share=shard placement.{name}.rest=host"]


def configured(tiny_root: Path, tmp_path: Path, name: str, **settings: Any) -> Path:
    """A pipeline with these settings in the config of one component."""
    root = Path(shutil.copytree(tiny.build("flux", tiny_root), tmp_path / "m"))
    file = root / name / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return root


@pytest.mark.parametrize("placement", PLACED)
@pytest.mark.parametrize("name", ["transformer", "text_encoder_2"])
def test_it_is_refused_by_name_where_it_would_be_placed(
    tiny_root: Path, tmp_path: Path, name: str, placement: str
) -> None:
    directory = read_directory(configured(tiny_root, tmp_path, name, quantization_config=BNB))
    overrides = f"placement.{name}.{placement}".format(name=name).split()
    message = (
        rf"placement\.{name}: .*{name}/config\.json has a quantization_config \(bitsandbytes\).*use share=replicate"
    )
    with pytest.raises(UserError, match=message):
        check_placements(directory, load_config(None, overrides))
    check_placements(directory, load_config(None, ["placement.vae.rest=host"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, r"quantization_config \(gptq\)"),
        ({"compression_config": {"format": "dense"}}, r"compression_config \(of an unknown method\)"),
        ({"quantization_config": ["x"]}, r"quantization_config \(of an unknown method\)"),
        ({"fusion_config": {"patch_embeddings": True}}, r"has a fusion_config: fused modules"),
    ],
)
def test_wherever_the_config_says_so(tiny_root: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    directory = read_directory(configured(tiny_root, tmp_path, "text_encoder", **settings))
    with pytest.raises(UserError, match=message):
        check_placements(directory, load_config(None, ["placement.text_encoder.rest=disk"]))


def test_a_config_that_says_null_is_of_plain_weights(tiny_root: Path, tmp_path: Path) -> None:
    directory = read_directory(configured(tiny_root, tmp_path, "transformer", quantization_config=None))
    check_placements(directory, load_config(None, ["placement.transformer.rest=disk"]))


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="the package is installed")
@pytest.mark.parametrize("name", ["transformer", "text_encoder_2"])
def test_where_it_stays_whole_the_package_is_named(tiny_root: Path, tmp_path: Path, name: str) -> None:
    directory = read_directory(configured(tiny_root, tmp_path, name, quantization_config=BNB))
    with pytest.raises(UserError, match=rf"{name} cannot be loaded.*bitsandbytes") as raised:
        load_whole(directory.sources[name], torch.float32)
    assert "\n" not in str(raised.value) and "install" in str(raised.value)


def test_where_it_stays_whole_it_is_what_the_library_makes_of_it(tmp_path: Path) -> None:
    """fp8 needs no other package: without a GPU, transformers turns it into plain weights."""
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Qwen2Model(Qwen2Config(**sizes, num_key_value_heads=1, vocab_size=11)).save_pretrained(tmp_path)
    quantised = {}
    for key, tensor in load_file(tmp_path / "model.safetensors").items():
        quantised[key] = tensor
        if key.endswith("proj.weight"):
            quantised[key] = (tensor * 100).to(torch.float8_e4m3fn)
            quantised[f"{key}_scale_inv"] = torch.full((1, 1), 0.01)
    save_file(quantised, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": fp8}))
    wanted = Qwen2Model.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    found = load_whole(Source("encoder", Qwen2Model, tmp_path), torch.float32).state_dict()
    assert found.keys() == wanted.keys() and not any("scale" in key for key in found)
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
