"""Stable Diffusion 3, its ControlNets, and its variants with perturbed attention."""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, SD3ControlNetModel, SD3Transformer2DModel
from transformers import CLIPTextModelWithProjection

from tests.census.case import MASK, NEGATIVE, OTHER, PICTURE, Case
from tests.tiny.image_vae import image_vae
from tests.tiny.text_encoders import clip_encoder, t5_encoder
from tests.tiny.weights import randomise

SIZES = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 32,
    "pos_embed_max_size": 8,
}
CALL = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 4.5, "max_sequence_length": 16}
CALL |= {"negative_prompt": NEGATIVE}
IMG2IMG = CALL | {"image": PICTURE, "strength": 0.8}


def parts(latents: int = 4) -> dict[str, Any]:
    tokenizer, text_encoder = clip_encoder(seed=1, model=CLIPTextModelWithProjection, dim=16)
    tokenizer_2, text_encoder_2 = clip_encoder(seed=2, model=CLIPTextModelWithProjection, dim=16)
    tokenizer_3, text_encoder_3 = t5_encoder(seed=3)
    sizes = SIZES | {"in_channels": latents, "out_channels": latents}
    transformer = SD3Transformer2DModel(**sizes, num_layers=2, dual_attention_layers=(0,), qk_norm="rms_norm")
    return {
        "transformer": randomise(transformer, seed=4),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": image_vae(seed=5, latent_channels=latents, shift_factor=0.1),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder_2,
        "tokenizer_2": tokenizer_2,
        "text_encoder_3": text_encoder_3,
        "tokenizer_3": tokenizer_3,
    }


def with_controlnet(mask_channels: int = 0) -> dict[str, Any]:
    controlnet = SD3ControlNetModel(**SIZES, num_layers=1, extra_conditioning_channels=mask_channels)
    return parts() | {"controlnet": randomise(controlnet, seed=6)}


CASES = [
    Case("StableDiffusion3Pipeline", parts, CALL),
    Case("StableDiffusion3Img2ImgPipeline", parts, IMG2IMG),
    Case("StableDiffusion3InpaintPipeline", lambda: parts(16), IMG2IMG | {"mask_image": MASK}),
    Case("StableDiffusion3ControlNetPipeline", with_controlnet, CALL | {"control_image": OTHER}),
    Case(
        "StableDiffusion3ControlNetInpaintingPipeline",
        lambda: with_controlnet(mask_channels=1),
        CALL | {"control_image": PICTURE, "control_mask": MASK},
    ),
    Case("StableDiffusion3PAGPipeline", parts, CALL | {"pag_scale": 2.0}),
    Case("StableDiffusion3PAGImg2ImgPipeline", parts, IMG2IMG | {"pag_scale": 2.0}),
]
