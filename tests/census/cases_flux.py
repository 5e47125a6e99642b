"""FLUX.1, its ControlNets and tools, and VisualCloze, which runs on its Fill model."""

from functools import partial
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, FluxControlNetModel, FluxTransformer2DModel

from tests.census.case import MASK, OTHER, PICTURE, Case
from tests.tiny.image_vae import image_vae
from tests.tiny.text_encoders import clip_encoder, t5_encoder
from tests.tiny.weights import randomise

SIZES = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": (2, 2, 4),
}
CALL = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 3.5, "max_sequence_length": 16}
IMG2IMG = CALL | {"image": PICTURE, "strength": 0.8}
INPAINT = IMG2IMG | {"mask_image": MASK}
CONTROL = {"control_image": OTHER}
KONTEXT = CALL | {"image": PICTURE, "max_area": 256, "_auto_resize": False}
CLOZE = {"num_inference_steps": 2, "guidance_scale": 3.5, "max_sequence_length": 16}
CLOZE |= {"task_prompt": "describe the spatial relationships", "content_prompt": "a red fox in the deep snow"}
CLOZE |= {"image": [[PICTURE, OTHER], [OTHER, None]]}


def parts(in_channels: int = 16) -> dict[str, Any]:
    """A packed latent has 16 channels. The control models take a control picture's beside it, the Fill model a masked
    picture's and a mask's."""
    tokenizer, text_encoder = clip_encoder(seed=1)
    tokenizer_2, text_encoder_2 = t5_encoder(seed=2)
    transformer = FluxTransformer2DModel(in_channels=in_channels, out_channels=16, **SIZES)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": image_vae(seed=3, shift_factor=0.1),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder_2,
        "tokenizer_2": tokenizer_2,
        "transformer": randomise(transformer, seed=4),
    }


def with_controlnet() -> dict[str, Any]:
    return parts() | {"controlnet": randomise(FluxControlNetModel(in_channels=16, **SIZES), seed=5)}


def cloze() -> dict[str, Any]:
    return parts(48) | {"resolution": 16}


CASES = [
    Case("FluxPipeline", parts, CALL),
    Case("FluxImg2ImgPipeline", parts, IMG2IMG),
    Case("FluxInpaintPipeline", parts, INPAINT),
    Case("FluxFillPipeline", partial(parts, 48), CALL | {"image": PICTURE, "mask_image": MASK}),
    Case("FluxKontextPipeline", parts, KONTEXT),
    Case("FluxKontextInpaintPipeline", parts, KONTEXT | {"mask_image": MASK, "strength": 0.8}),
    Case("FluxControlPipeline", partial(parts, 32), CALL | CONTROL),
    Case("FluxControlImg2ImgPipeline", partial(parts, 32), IMG2IMG | CONTROL),
    Case("FluxControlInpaintPipeline", partial(parts, 32), INPAINT | CONTROL),
    Case("FluxControlNetPipeline", with_controlnet, CALL | CONTROL),
    Case("FluxControlNetImg2ImgPipeline", with_controlnet, IMG2IMG | CONTROL),
    Case("FluxControlNetInpaintPipeline", with_controlnet, INPAINT | CONTROL),
    Case("VisualClozeGenerationPipeline", cloze, CLOZE, prompt=None),
    Case(
        "VisualClozePipeline",
        cloze,
        CLOZE | {"upsampling_height": 32, "upsampling_width": 32, "upsampling_strength": 0.6},
        prompt=None,
    ),
]
