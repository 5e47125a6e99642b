"""A component built without weights is the one its library loads, in every name, shape, dtype and buffer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import sharding
from runner.components.directory import read_directory
from runner.components.skeleton import dtype_plan, skeleton
from runner.components.source import Source
from runner.components.whole import load_whole
from tests import tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_skeleton_of_each_component_is_what_its_library_builds(
    family: str, dtype: torch.dtype, tiny_root: Path
) -> None:
    path = tiny.build(family, tiny_root)
    default = torch.get_default_dtype()
    for name, source in read_directory(path).sources.items():
        if not source.is_module:
            continue
        loaded, built = load_whole(source, dtype), skeleton(source, dtype)
        sharding.set_dtype(built, dtype_plan(built, dtype))
        expected = {key: (tensor.shape, tensor.dtype) for key, tensor in loaded.named_parameters()}
        assert {key: (tensor.shape, tensor.dtype) for key, tensor in built.named_parameters()} == expected, name
        assert all(tensor.is_meta for tensor in built.parameters())
        buffers = dict(built.named_buffers())
        for key, buffer in loaded.named_buffers():
            assert buffers.pop(key).dtype is buffer.dtype, (name, key)
            if key not in loaded.state_dict():
                assert torch.equal(dict(built.named_buffers())[key], buffer), (name, key)
        assert not buffers and not built.training
    assert torch.get_default_dtype() is default


@pytest.mark.parametrize("own_file", [True, False])
def test_a_model_that_generates_does_so_with_the_settings_of_its_folder(tmp_path: Path, own_file: bool) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=1, vocab_size=11, eos_token_id=7))
    model.generation_config.update(max_new_tokens=5, top_k=3, do_sample=True)
    model.save_pretrained(tmp_path)
    if not own_file:
        (tmp_path / "generation_config.json").unlink()
    wanted = Qwen2ForCausalLM.from_pretrained(tmp_path).generation_config.to_dict()
    built: Any = skeleton(Source("encoder", Qwen2ForCausalLM, tmp_path), torch.float32)
    assert built.generation_config.to_dict() == wanted
    assert (wanted["max_new_tokens"] == 5) == own_file
