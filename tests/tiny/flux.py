"""FLUX.1: guidance-distilled, so one forward a step, over double and then single blocks."""

from pathlib import Path
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from .family import NUM_STEPS, TinyPipeline
from .image_vae import LATENT_CHANNELS, image_vae
from .text_encoders import TEXT_DIM, clip_encoder, t5_encoder
from .weights import randomise


def parts() -> dict[str, Any]:
    tokenizer, text_encoder = clip_encoder(seed=1)
    tokenizer_2, text_encoder_2 = t5_encoder(seed=2)
    transformer = FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=3,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=TEXT_DIM,
        pooled_projection_dim=TEXT_DIM,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": image_vae(seed=3, shift_factor=0.1),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder_2,
        "tokenizer_2": tokenizer_2,
        "transformer": randomise(transformer, seed=4),
    }


def build(path: Path) -> None:
    FluxPipeline(**parts()).save_pretrained(path)


FLUX = TinyPipeline(
    name="flux",
    build=build,
    call={
        "height": 16,
        "width": 16,
        "num_inference_steps": NUM_STEPS,
        "guidance_scale": 3.5,
        "max_sequence_length": 16,
    },
    text_encoders=("text_encoder", "text_encoder_2"),
)
