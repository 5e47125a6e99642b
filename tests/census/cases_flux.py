"""FLUX.1 and what shares its parts."""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

from tests.census.case import FILES, MASK, PICTURE, Case
from tests.tiny.image_vae import image_vae
from tests.tiny.text_encoders import clip_encoder, t5_encoder
from tests.tiny.weights import randomise

CALL = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 3.5, "max_sequence_length": 16}


def flux_parts(in_channels: int = 16) -> dict[str, Any]:
    tokenizer, text_encoder = clip_encoder(seed=1)
    tokenizer_2, text_encoder_2 = t5_encoder(seed=2)
    transformer = FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
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


CASES = [
    Case("FluxPipeline", flux_parts, CALL),
    Case("FluxImg2ImgPipeline", flux_parts, CALL | {"image": PICTURE, "strength": 0.8}, gap=FILES),
    Case("FluxInpaintPipeline", flux_parts, CALL | {"image": PICTURE, "mask_image": MASK, "strength": 0.8}, gap=FILES),
]
