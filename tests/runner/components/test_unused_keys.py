"""Stored keys that a component has no place for: ignored or told as its library does, in every placement."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from sharding import build_mesh
from tests import ranks
from tests.ranks import on_ranks
from tests.runner.components.placements import PLACEMENTS, place, state_of

_SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
_T5 = {"vocab_size": 9, "d_model": 8, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1}


def clip(path: Path) -> type[nn.Module]:
    """As in checkpoints of transformers 4: position_ids were stored."""
    CLIPTextModel(CLIPTextConfig(vocab_size=9, max_position_embeddings=5, **_SMALL)).save_pretrained(path)
    add(path / "model.safetensors", "text_model.embeddings.position_ids")
    return CLIPTextModel


def t5_with_decoder(path: Path) -> type[nn.Module]:
    """The whole T5, of which only the encoder is used: its decoder is on the library's list, its head is not."""
    T5ForConditionalGeneration(T5Config(**_T5)).save_pretrained(path)
    add(path / "model.safetensors", "lm_head.weight")
    return T5EncoderModel


def llama_with_inv_freq(path: Path) -> type[nn.Module]:
    """An older checkpoint, which stored the rotary frequencies of each layer."""
    LlamaModel(LlamaConfig(**_SMALL, num_key_value_heads=1, vocab_size=9)).save_pretrained(path)
    add(path / "model.safetensors", "layers.0.self_attn.rotary_emb.inv_freq")
    return LlamaModel


def llama_with_head(path: Path) -> type[nn.Module]:
    LlamaModel(LlamaConfig(**_SMALL, num_key_value_heads=1, vocab_size=9)).save_pretrained(path)
    add(path / "model.safetensors", "lm_head.weight")
    return LlamaModel


def wan(path: Path) -> type[nn.Module]:
    sizes = {"num_attention_heads": 1, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 8}
    WanTransformer3DModel(**sizes, freq_dim=8, ffn_dim=8, num_layers=1, rope_max_seq_len=8).save_pretrained(path)
    for key in ("blocks.0.attn2.norm_added_q.weight", "stranger"):
        add(path / "diffusion_pytorch_model.safetensors", key)
    return WanTransformer3DModel


# What the library says of them, by how its component is written.
TOLD: dict[str, tuple[Callable[[Path], type[nn.Module]], list[str]]] = {
    "clip": (clip, []),
    "t5": (t5_with_decoder, ["lm_head.weight"]),
    "llama, older": (llama_with_inv_freq, []),
    "llama": (llama_with_head, ["lm_head.weight"]),
    "wan": (wan, ["stranger"]),
}


def add(file: Path, key: str) -> None:
    save_file(load_file(file) | {key: torch.zeros(2)}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("written", TOLD)
@on_ranks(1)
def test_no_placement_takes_the_slow_way_for_them_and_those_the_library_warns_of_are_told(
    world: ranks.World, written: str
) -> None:
    write, told = TOLD[written]
    path = world.tmp_path / "component"
    cls = write(path)
    expected, info = cls.from_pretrained(path, output_loading_info=True)  # type: ignore[attr-defined]
    assert sorted(info["unexpected_keys"]) == told
    fast = {
        "resident": "weight by weight",
        "sharded": "each rank its slices",
        "host": "once a node, each rank its share",
        "disk": "block by block, whenever a block is wanted",
    }
    note = f"; stored, but of no use to it: {'; '.join(told)}" if told else ""
    for placement in PLACEMENTS:
        module, loading = place(cls, path, placement, build_mesh("cpu"))
        assert loading.how == fast[placement] + note
        found = state_of(module)
        assert found.keys() == expected.state_dict().keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.state_dict().items()), placement
