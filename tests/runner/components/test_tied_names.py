"""Names that a model ties are tied where its files say so, and nowhere else: as its library does, however placed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from sharding import build_mesh
from tests import ranks
from tests.ranks import on_ranks
from tests.runner.components.placements import PLACEMENTS, place, state_of
from tests.tiny.weights import randomise
from weights.tied import tied_names

Tensors = dict[str, torch.Tensor]
_T5_SIZES = {"vocab_size": 11, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2}
_QWEN_SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def t5() -> PreTrainedModel:
    return T5EncoderModel(T5Config(**_T5_SIZES))


def umt5() -> PreTrainedModel:
    return UMT5EncoderModel(UMT5Config(**_T5_SIZES))


def with_head() -> PreTrainedModel:
    sizes: dict[str, Any] = {**_QWEN_SIZES, "num_key_value_heads": 1, "vocab_size": 11}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True))


MODELS: dict[str, tuple[Callable[[], PreTrainedModel], tuple[str, str]]] = {
    "t5": (t5, ("shared.weight", "encoder.embed_tokens.weight")),
    "umt5": (umt5, ("shared.weight", "encoder.embed_tokens.weight")),
    "with head": (with_head, ("model.embed_tokens.weight", "lm_head.weight")),
}
STORED: dict[str, Callable[[torch.Tensor, str, str], Tensors]] = {
    "the first name": lambda weight, first, second: {first: weight},
    "the second name": lambda weight, first, second: {second: weight},
    "both, with the same bits": lambda weight, first, second: {first: weight, second: weight.clone()},
    "both, with different bits": lambda weight, first, second: {first: weight, second: weight + 1},
    "both, in different dtypes": lambda weight, first, second: {first: weight, second: (weight + 1).bfloat16()},
}


def write(path: Path, name: str, stored: str) -> type[PreTrainedModel]:
    build, names = MODELS[name]
    model = randomise(build(), seed=3)
    model.save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    weight = next(tensors.pop(name) for name in names if name in tensors)
    assert not tensors.keys() & {*names}
    save_file(tensors | STORED[stored](weight, *names), path / "model.safetensors", metadata={"format": "pt"})
    return type(model)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", MODELS)
@on_ranks(1)
def test_each_name_has_the_weight_that_the_library_gives_it(world: ranks.World, name: str, stored: str) -> None:
    path = world.tmp_path / "component"
    cls = write(path, name, stored)
    expected = cls.from_pretrained(path, dtype=torch.float32)
    tokens = torch.arange(5)[None]
    with torch.inference_mode():
        wanted = expected(tokens)[0]
    for placement in PLACEMENTS:
        module, loading = place(cls, path, placement, build_mesh("cpu"))
        assert not loading.how.startswith("whole"), loading.how
        found = state_of(module)
        assert found.keys() == expected.state_dict().keys()
        for key, tensor in expected.state_dict().items():
            assert torch.equal(found[key], tensor), (placement, key)
        assert sorted(map(sorted, tied_names(module))) == sorted(map(sorted, tied_names(expected))), placement
        with torch.no_grad():
            assert torch.equal(module(tokens)[0], wanted), placement
