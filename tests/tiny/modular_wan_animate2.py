"""Wan-Animate 2, which exists only as a modular pipeline: a picture and a driving video in, a loop over segments that
encodes, denoises and decodes."""

from pathlib import Path

import numpy as np
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanAnimate2ModularPipeline,
    WanAnimate2Transformer3DModel,
)
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from .family import NEGATIVE_PROMPT, NUM_STEPS, TinyPipeline
from .modular_directory import write_modular
from .text_encoders import TEXT_DIM, umt5_encoder
from .weights import randomise

LATENT_CHANNELS = 4


def build(path: Path) -> None:
    tokenizer, text_encoder = umt5_encoder(seed=1)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=224,
        patch_size=56,
        projection_dim=32,
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1] * LATENT_CHANNELS,
        latents_std=[1.5] * LATENT_CHANNELS,
    )
    transformer = WanAnimate2Transformer3DModel(
        text_len=24,
        in_dim=2 * LATENT_CHANNELS + 4,
        dim=48,
        ffn_dim=64,
        freq_dim=32,
        text_dim=TEXT_DIM,
        out_dim=LATENT_CHANNELS,
        num_heads=4,
        num_layers=4,
        use_img_emb=False,  # which takes an encoder of 1280 channels
    )
    write_modular(
        path,
        WanAnimate2ModularPipeline,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        image_encoder=randomise(CLIPVisionModel(vision), seed=2),
        vae=randomise(vae, seed=3),
        transformer=randomise(transformer, seed=4),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )


def _picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


MODULAR_WAN_ANIMATE2 = TinyPipeline(
    name="modular_wan_animate2",
    build=build,
    call={
        "negative_prompt": NEGATIVE_PROMPT,
        "image": _picture(0),
        "driving_video": [_picture(seed) for seed in range(1, 8)],
        "height": 32,
        "width": 32,
        "segment_frame_length": 5,  # so that there are two
        "num_inference_steps": NUM_STEPS,
        "max_sequence_length": 24,
    },
    output="videos",
    unread=("image_encoder",),
)
