"""Qwen-Image: made, edited, controlled, and in layers."""

from typing import Any

from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Transformer2DModel,
    QwenImageControlNetModel,
    QwenImageTransformer2DModel,
)
from transformers import Qwen3VLProcessor

from tests.census.case import MASK, NEGATIVE, OTHER, PICTURE, Case, File
from tests.census.parts import qwen3_vl, qwen25_vl, qwen_processor
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


EDIT = CALL | {"image": PICTURE}
LAYERED = {
    "image": File("picture.png", mode="RGBA"),
    "layers": 2,
    "num_inference_steps": 2,
    "resolution": 640,
    "max_sequence_length": 16,
}
V21 = {"image": PICTURE, "height": 64, "width": 64, "num_inference_steps": 2, "output_resolution": 64}
TORCHVISION = ("torchvision",)


def vae(seed: int, **config: Any) -> AutoencoderKLQwenImage:
    sizes = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 2], "num_res_blocks": 1}
    means = {"temperal_downsample": [False, True], "latents_mean": [0.1] * 4, "latents_std": [1.5] * 4}
    return randomise(AutoencoderKLQwenImage(**(sizes | means | config)), seed)


def parts(**config: Any) -> dict[str, Any]:
    tokenizer, text_encoder = qwen25_vl(seed=1)
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


def editing(**config: Any) -> dict[str, Any]:
    """A picture to edit is brought to a million pixels: the autoencoder makes a 16th of each side, with little work."""
    made = parts(**config)
    small = vae(seed=2, base_dim=2, num_res_blocks=0, dim_mult=[1] * 5, temperal_downsample=[False] * 4)
    return made | {"vae": small, "processor": qwen_processor()}


def layered() -> dict[str, Any]:
    """Pictures with an alpha channel, in layers. What has as many channels as a latent is taken for one: not 4."""
    made = editing(in_channels=24, out_channels=6, use_layer3d_rope=True, use_additional_t_cond=True)
    config = {"base_dim": 2, "num_res_blocks": 0, "dim_mult": [1] * 5, "temperal_downsample": [False] * 4}
    latents = {"z_dim": 6, "latents_mean": [0.1] * 6, "latents_std": [1.5] * 6}
    return made | {"vae": vae(seed=2, input_channels=4, **config, **latents)}


def version_21() -> dict[str, Any]:
    _, text_encoder = qwen3_vl(seed=1)
    vae = AutoencoderKLQwenImage21(
        base_dim=2,
        decoder_base_dim=2,
        z_dim=4,
        dim_mult=[1] * 5,
        num_res_blocks=1,
        temperal_downsample=[False] * 4,
        latents_mean=[0.1] * 4,
        latents_std=[1.5] * 4,
    )
    transformer = QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        context_in_dim=32,
        axes_dims_rope=(2, 2, 4),
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": randomise(vae, seed=2),
        "text_encoder": text_encoder,
        "processor": qwen_processor(Qwen3VLProcessor),
        "transformer": randomise(transformer, seed=3),
    }


CASES = [
    Case("QwenImagePipeline", parts, CALL),
    Case("QwenImageImg2ImgPipeline", parts, IMG2IMG),
    Case("QwenImageInpaintPipeline", parts, INPAINT),
    Case("QwenImageControlNetPipeline", with_controlnet, CALL | {"control_image": OTHER}),
    Case(
        "QwenImageControlNetInpaintPipeline",
        lambda: with_controlnet(mask_channels=4),
        CALL | {"control_image": PICTURE, "control_mask": MASK},
    ),
    Case("QwenImageEditPipeline", editing, EDIT, needs=TORCHVISION),
    Case("QwenImageEditPlusPipeline", editing, EDIT | {"image": [PICTURE, OTHER]}, needs=TORCHVISION),
    Case("QwenImageEditInpaintPipeline", editing, INPAINT, needs=TORCHVISION),
    Case("QwenImageLayeredPipeline", layered, LAYERED, needs=TORCHVISION),
    Case("QwenImage21Pipeline", version_21, V21, needs=TORCHVISION),
]
