"""Wan text-to-video: 2.1 with one transformer, 2.2 with a second one for the low-noise steps."""

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

from .family import NEGATIVE_PROMPT, NUM_STEPS, TinyPipeline
from .text_encoders import TEXT_DIM, umt5_encoder
from .weights import randomise

LATENT_CHANNELS = 4


def _transformer(seed: int) -> WanTransformer3DModel:
    transformer = WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=32,
        ffn_dim=64,
        num_layers=4,
        rope_max_seq_len=32,
    )
    return randomise(transformer, seed)


def _vae(seed: int) -> AutoencoderKLWan:
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1] * LATENT_CHANNELS,
        latents_std=[1.5] * LATENT_CHANNELS,
    )
    return randomise(vae, seed)


def parts() -> dict[str, Any]:
    tokenizer, text_encoder = umt5_encoder(seed=1)
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": _vae(seed=2),
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        "transformer": _transformer(seed=3),
    }


def parts_of_wan22() -> dict[str, Any]:
    """At the ratio of the released model the first of three steps is high-noise, the other two are low-noise."""
    return {**parts(), "transformer_2": _transformer(seed=4), "boundary_ratio": 0.875}


def build_wan21(path: Path) -> None:
    WanPipeline(**parts(), transformer_2=None, boundary_ratio=None).save_pretrained(path)


def build_wan22(path: Path) -> None:
    WanPipeline(**parts_of_wan22()).save_pretrained(path)


_CALL = {
    "negative_prompt": NEGATIVE_PROMPT,
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "num_inference_steps": NUM_STEPS,
    "guidance_scale": 5.0,
    "max_sequence_length": 24,
}

WAN = TinyPipeline(name="wan", build=build_wan21, call=_CALL, output="frames")
WAN22 = TinyPipeline(
    name="wan22",
    build=build_wan22,
    call={**_CALL, "guidance_scale_2": 3.0},
    denoisers=("transformer", "transformer_2"),
    output="frames",
)
