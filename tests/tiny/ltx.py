"""LTX-Video: guidance in one batch of two, and latent statistics read off the autoencoder's buffers from outside it."""

from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)

from .family import NEGATIVE_PROMPT, NUM_STEPS, TinyPipeline
from .text_encoders import TEXT_DIM, t5_encoder
from .weights import randomise

LATENT_CHANNELS = 8


def ltx_vae(seed: int, **more: Any) -> AutoencoderKLLTXVideo:
    vae = AutoencoderKLLTXVideo(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=2,
        **more,
    )
    vae.latents_mean.fill_(0.1)
    vae.latents_std.fill_(1.5)
    return randomise(vae, seed)


def build(path: Path) -> None:
    tokenizer, text_encoder = t5_encoder(seed=1)
    transformer = LTXVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=4,
        caption_channels=TEXT_DIM,
    )
    LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=ltx_vae(seed=2),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=randomise(transformer, seed=3),
    ).save_pretrained(path)


LTX = TinyPipeline(
    name="ltx",
    build=build,
    call={
        "negative_prompt": NEGATIVE_PROMPT,
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "num_inference_steps": NUM_STEPS,
        "guidance_scale": 3.0,
        "max_sequence_length": 24,
    },
    output="frames",
)
