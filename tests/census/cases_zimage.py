"""Z-Image, and its ControlNet."""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, ZImageControlNetModel, ZImageTransformer2DModel
from transformers import Siglip2ImageProcessorPil, Siglip2VisionConfig, Siglip2VisionModel

from tests.census.case import MASK, NEGATIVE, OTHER, PICTURE, Case
from tests.census.parts import qwen3
from tests.tiny.image_vae import image_vae
from tests.tiny.weights import randomise

SIZES = {"dim": 24, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
CALL = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 4.0, "max_sequence_length": 24}
CALL |= {"negative_prompt": NEGATIVE}
IMG2IMG = CALL | {"image": PICTURE, "strength": 0.8}


def parts(**config: Any) -> dict[str, Any]:
    tokenizer, text_encoder = qwen3(seed=1)
    rope = {"axes_dims": [4, 4, 4], "axes_lens": [64, 32, 32]}
    transformer = ZImageTransformer2DModel(in_channels=4, n_layers=2, cap_feat_dim=32, **SIZES, **rope, **config)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": image_vae(seed=2, shift_factor=0.1),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
    }


def with_controlnet(**config: Any) -> dict[str, Any]:
    places = {"control_layers_places": [0], "control_refiner_layers_places": [0]}
    controlnet = ZImageControlNetModel(**(places | SIZES | config))
    return parts() | {"controlnet": randomise(controlnet, seed=4)}


def with_siglip() -> dict[str, Any]:
    """It sees pictures of any shape, in patches."""
    config = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    siglip = Siglip2VisionModel(Siglip2VisionConfig(**config, patch_size=8, num_patches=16))
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    return parts(siglip_feat_dim=16) | {"siglip": randomise(siglip, seed=5), "siglip_processor": processor}


CASES = [
    Case("ZImagePipeline", parts, CALL),
    Case("ZImageImg2ImgPipeline", parts, IMG2IMG),
    Case("ZImageInpaintPipeline", parts, IMG2IMG | {"mask_image": MASK}),
    Case("ZImageOmniPipeline", with_siglip, CALL | {"image": [PICTURE, OTHER]}, dtype="bfloat16"),
    Case(
        "ZImageControlNetPipeline",
        lambda: with_controlnet(control_in_dim=4),
        CALL | {"control_image": OTHER},
    ),
    Case(
        "ZImageControlNetInpaintPipeline",
        lambda: with_controlnet(control_in_dim=9, add_control_noise_refiner="control_layers"),
        CALL | {"image": PICTURE, "mask_image": MASK, "control_image": OTHER},
    ),
]
