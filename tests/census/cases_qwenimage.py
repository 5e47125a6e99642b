"""Qwen-Image: made, edited, controlled, and in layers."""

from typing import Any

from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageControlNetModel,
    QwenImageTransformer2DModel,
)

from tests.census.case import FILES, MASK, NEGATIVE, OTHER, PICTURE, Case
from tests.tiny.text_encoders import qwen_vl_encoder
from tests.tiny.weights import randomise

SIZES = {
    "num_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (2, 2, 4),
}
CALL = {"height": 32, "width": 32, "num_inference_steps": 2, "true_cfg_scale": 4.0, "max_sequence_length": 16}
CALL |= {"negative_prompt": NEGATIVE}
IMG2IMG = CALL | {"image": PICTURE, "strength": 0.8}
INPAINT = IMG2IMG | {"mask_image": MASK}


def vae(seed: int, **config: Any) -> AutoencoderKLQwenImage:
    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 2], "num_res_blocks": 1}
    means = {"temperal_downsample": [False, True], "latents_mean": [0.1] * 4, "latents_std": [1.5] * 4}
    return randomise(AutoencoderKLQwenImage(**(sizes | means | config)), seed)


def parts(**config: Any) -> dict[str, Any]:
    tokenizer, text_encoder = qwen_vl_encoder(seed=1)
    transformer = QwenImageTransformer2DModel(**({"in_channels": 16, "out_channels": 4} | SIZES | config))
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": vae(seed=2),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
    }


def with_controlnet(mask_channels: int = 0) -> dict[str, Any]:
    controlnet = QwenImageControlNetModel(
        in_channels=16, out_channels=4, **SIZES, extra_condition_channels=mask_channels
    )
    return parts() | {"controlnet": randomise(controlnet, seed=4)}


CASES = [
    Case("QwenImagePipeline", parts, CALL),
    Case("QwenImageImg2ImgPipeline", parts, IMG2IMG, gap=FILES),
    Case("QwenImageInpaintPipeline", parts, INPAINT, gap=FILES),
    Case("QwenImageControlNetPipeline", with_controlnet, CALL | {"control_image": OTHER}, gap=FILES),
    Case(
        "QwenImageControlNetInpaintPipeline",
        lambda: with_controlnet(mask_channels=4),
        CALL | {"control_image": PICTURE, "control_mask": MASK},
        gap=FILES,
    ),
]
