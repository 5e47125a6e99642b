"""Tiny models that have a plan of context parallelism, each with a call of it: how many tokens, of picture and text."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import (
    ChronoEditTransformer3DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HeliosTransformer3DModel,
    MiniMaxH3Transformer3DModel,
    QwenImageTransformer2DModel,
    WanTransformer3DModel,
)
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tests.tiny.weights import randomise

TEXT_DIM = 16
Call = dict[str, Any]
LIKE_WAN: dict[str, int] = {
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": TEXT_DIM,
    "num_layers": 3,
}


def flux() -> nn.Module:
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=TEXT_DIM,
        pooled_projection_dim=TEXT_DIM,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )


def call_of_flux(tokens: int, text: int) -> Call:
    ids = torch.stack([torch.zeros(tokens), torch.arange(tokens) // 4, torch.arange(tokens) % 4], dim=1)
    return {
        "hidden_states": torch.randn(1, tokens, 16),
        "encoder_hidden_states": torch.randn(1, text, TEXT_DIM),
        "pooled_projections": torch.randn(1, TEXT_DIM),
        "timestep": torch.tensor([0.7]),
        "guidance": torch.tensor([3.5]),
        "img_ids": ids,
        "txt_ids": torch.zeros(text, 3),
    }


def call_of_flux_with_controlnet(tokens: int, text: int) -> Call:
    return call_of_flux(tokens, text) | {
        "controlnet_block_samples": [torch.randn(1, tokens, 32)],
        "controlnet_single_block_samples": [torch.randn(1, tokens, 32), torch.randn(1, tokens, 32)],
    }


def flux2() -> nn.Module:
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=TEXT_DIM,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=True,
    )


def call_of_flux2(tokens: int, text: int) -> Call:
    call = call_of_flux(tokens, text)
    del call["pooled_projections"]
    ids = torch.cat([call["img_ids"], torch.zeros(tokens, 1)], dim=1)
    return call | {"img_ids": ids[None], "txt_ids": torch.zeros(1, text, 4)}


def qwenimage(**settings: Any) -> nn.Module:
    return QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=TEXT_DIM,
        axes_dims_rope=(2, 2, 4),
        **settings,
    )


def call_of_qwenimage(tokens: int, text: int) -> Call:
    return {
        "hidden_states": torch.randn(1, tokens, 16),
        "encoder_hidden_states": torch.randn(1, text, TEXT_DIM),
        "timestep": torch.tensor([0.7]),
        "img_shapes": [[(1, tokens, 1)]],
    }


def call_of_qwenimage_padded(tokens: int, text: int) -> Call:
    """Two prompts, the second of which is shorter; a ControlNet adds to each block."""
    mask = torch.ones(2, text)
    mask[1, text // 2 :] = 0
    return {
        "hidden_states": torch.randn(2, tokens, 16),
        "encoder_hidden_states": torch.randn(2, text, TEXT_DIM),
        "encoder_hidden_states_mask": mask,
        "timestep": torch.tensor([0.7, 0.7]),
        "img_shapes": [[(1, tokens, 1)]] * 2,
        "controlnet_block_samples": [torch.randn(2, tokens, 32) for _ in range(3)],
    }


def call_of_qwenimage_edit(tokens: int, text: int) -> Call:
    """The picture to edit has tokens of its own, with a timestep of its own."""
    shapes = [[(1, tokens - tokens // 3, 1), (1, tokens // 3, 1)]]
    return call_of_qwenimage(tokens, text) | {"img_shapes": shapes}


def wan(**settings: Any) -> nn.Module:
    return WanTransformer3DModel(
        **LIKE_WAN,
        freq_dim=32,
        ffn_dim=64,
        rope_max_seq_len=64,
        **settings,
    )


def call_of_wan(tokens: int, text: int) -> Call:
    return {
        "hidden_states": torch.randn(1, 4, 1, 2, 2 * tokens),
        "encoder_hidden_states": torch.randn(1, text, TEXT_DIM),
        "timestep": torch.tensor([700.0]),
    }


def call_of_wan_with_a_timestep_each(tokens: int, text: int) -> Call:
    """Wan 2.2 5B: the tokens of a given first frame are not noisy."""
    return call_of_wan(tokens, text) | {"timestep": torch.linspace(0, 700, tokens)[None]}


def call_of_wan_with_picture(tokens: int, text: int) -> Call:
    """257 tokens of the picture's encoder beside those of the text are never even."""
    return call_of_wan(tokens, text) | {"encoder_hidden_states_image": torch.randn(1, 257, TEXT_DIM)}


def chronoedit() -> nn.Module:
    return ChronoEditTransformer3DModel(
        **LIKE_WAN,
        freq_dim=32,
        ffn_dim=64,
        rope_max_seq_len=64,
        image_dim=TEXT_DIM,
        added_kv_proj_dim=48,
    )


def helios(**settings: Any) -> nn.Module:
    return HeliosTransformer3DModel(
        **LIKE_WAN,
        freq_dim=16,
        ffn_dim=32,
        rope_dim=(4, 4, 4),
        **settings,
    )


def call_of_helios(tokens: int, text: int) -> Call:
    return call_of_wan(tokens, text) | {
        "indices_hidden_states": torch.tensor([[1]]),
        "indices_latents_history_short": torch.tensor([[0]]),
        "latents_history_short": torch.randn(1, 4, 1, 2, 2 * tokens),
        "timestep": torch.tensor([700]),
    }


def minimax_h3() -> nn.Module:
    return MiniMaxH3Transformer3DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        hidden_size=24,
        num_layers=3,
        num_refiner_layers=1,
        ffn_dim=32,
        in_channels=4,
        audio_in_channels=4,
        text_dim=TEXT_DIM,
        freq_dim=16,
        time_embed_hidden_dim=24,
        time_embed_dim=16,
        rope_freq_dim=2,
    )


def call_of_minimax_h3(tokens: int, text: int) -> Call:
    """One sequence: text, then picture, then four tokens of sound."""
    total = text + tokens + 4
    tags = torch.tensor([1] * text + [0] * tokens + [2] * 4)
    return {
        "hidden_states": torch.randn(1, tokens, 16),
        "audio_hidden_states": torch.randn(1, 4, 4),
        "encoder_hidden_states": torch.randn(1, text, TEXT_DIM),
        "timestep": torch.tensor([0.2, 0.7]),
        "timestep_indices": (tags == 2).long(),
        "token_tags": tags,
        "position_ids": torch.arange(total)[:, None].expand(total, 3).float(),
        "video_indices": torch.arange(text, text + tokens),
        "audio_indices": torch.arange(text + tokens, total),
        "text_indices": torch.arange(text),
    }


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Call]]] = {
    "flux": (flux, call_of_flux),
    "flux, controlnet": (flux, call_of_flux_with_controlnet),
    "flux2": (flux2, call_of_flux2),
    "qwenimage": (qwenimage, call_of_qwenimage),
    "qwenimage, padded": (qwenimage, call_of_qwenimage_padded),
    "qwenimage-edit": (partial(qwenimage, zero_cond_t=True), call_of_qwenimage_edit),
    "wan": (wan, call_of_wan),
    "wan, a timestep each": (wan, call_of_wan_with_a_timestep_each),
    "wan, picture": (partial(wan, image_dim=TEXT_DIM, added_kv_proj_dim=48), call_of_wan_with_picture),
    "chronoedit": (chronoedit, call_of_wan_with_picture),
    "helios": (helios, call_of_helios),
    "helios, text for the new frames": (partial(helios, guidance_cross_attn=True), call_of_helios),
    "minimax-h3": (minimax_h3, call_of_minimax_h3),
}


def model_and_call(name: str, tokens: int, text: int) -> tuple[nn.Module, Call]:
    build, call = MODELS[name]
    model = randomise(build(), seed=1).eval()
    torch.manual_seed(2)
    return model, call(tokens, text)


def context_mesh(device_type: str, ranks: int) -> DeviceMesh:
    """All ranks, as diffusers names the axes."""
    return init_device_mesh(device_type, (1, ranks), mesh_dim_names=("ring", "ulysses"))
