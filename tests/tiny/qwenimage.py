"""Qwen-Image: a vision-language model as text encoder, guidance in two forwards a step, a video autoencoder."""

from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

from .family import NEGATIVE_PROMPT, NUM_STEPS, TinyPipeline
from .text_encoders import TEXT_DIM, qwen_vl_encoder
from .weights import randomise

LATENT_CHANNELS = 4


def parts() -> dict[str, Any]:
    tokenizer, text_encoder = qwen_vl_encoder(seed=1)
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1] * LATENT_CHANNELS,
        latents_std=[1.5] * LATENT_CHANNELS,
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=TEXT_DIM,
        axes_dims_rope=(2, 2, 4),
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": randomise(vae, seed=2),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
    }


def build(path: Path) -> None:
    QwenImagePipeline(**parts()).save_pretrained(path)


QWENIMAGE = TinyPipeline(
    name="qwenimage",
    build=build,
    call={
        "negative_prompt": NEGATIVE_PROMPT,
        "true_cfg_scale": 4.0,
        "height": 32,
        "width": 32,
        "num_inference_steps": NUM_STEPS,
        "max_sequence_length": 16,
    },
    unread=("text_encoder.model.visual",),
)
