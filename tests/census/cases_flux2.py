"""FLUX.2, and other families whose latents come from its autoencoder."""

from typing import Any

from diffusers import (
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
)
from transformers import Mistral3Model

from tests.census.case import MASK, NEGATIVE, OTHER, PICTURE, Case
from tests.census.parts import flux2_vae, mistral3, qwen3
from tests.tiny.weights import randomise

LAYERS = [1, 2]  # of the text encoder, laid side by side
CALL = {
    "height": 16,
    "width": 16,
    "num_inference_steps": 2,
    "max_sequence_length": 24,
    "text_encoder_out_layers": LAYERS,
}


def parts(text: tuple[Any, Any] | None = None, guidance: bool = False) -> dict[str, Any]:
    tokenizer, text_encoder = text or qwen3(seed=1)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32 * len(LAYERS),
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=guidance,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": flux2_vae(seed=2),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
    }


def dev() -> dict[str, Any]:
    return parts(mistral3(seed=1), guidance=True)


def ernie() -> dict[str, Any]:
    tokenizer, text_encoder = mistral3(seed=1, model=Mistral3Model)
    transformer = ErnieImageTransformer2DModel(
        hidden_size=24,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=32,
        rope_axes_dim=(4, 4, 4),
    )
    return {
        "transformer": randomise(transformer, seed=2),
        "vae": flux2_vae(seed=3),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


CASES = [
    Case("Flux2Pipeline", dev, CALL | {"image": [PICTURE, OTHER]}),
    Case("Flux2KleinPipeline", parts, CALL),
    Case("Flux2KleinKVPipeline", parts, CALL | {"image": PICTURE}),
    Case("Flux2KleinInpaintPipeline", parts, CALL | {"image": PICTURE, "mask_image": MASK, "strength": 0.8}),
    Case(
        "ErnieImagePipeline",
        ernie,
        {"height": 16, "width": 16, "num_inference_steps": 2, "use_pe": False, "negative_prompt": NEGATIVE},
    ),
]
