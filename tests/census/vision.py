"""Encoders of pictures, a few thousand weights each, with the processors that they were sized for."""

from typing import Any

from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.tiny.weights import randomise

VISION_DIM = 16
_SIZE = 8  # pixels; four patches
_SIZES: dict[str, Any] = {
    "hidden_size": VISION_DIM,
    "intermediate_size": 2 * VISION_DIM,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": _SIZE,
    "patch_size": _SIZE // 2,
}


def clip_vision(seed: int) -> CLIPVisionModel:
    return randomise(CLIPVisionModel(CLIPVisionConfig(**_SIZES)), seed)


def clip_vision_with_projection(seed: int) -> CLIPVisionModelWithProjection:
    return randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**_SIZES, projection_dim=VISION_DIM)), seed)


def clip_image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": _SIZE}, crop_size={"height": _SIZE, "width": _SIZE})


def siglip_vision(seed: int) -> SiglipVisionModel:
    return randomise(SiglipVisionModel(SiglipVisionConfig(**_SIZES)), seed)


def siglip_image_processor() -> SiglipImageProcessor:
    return SiglipImageProcessor(size={"height": _SIZE, "width": _SIZE})
