"""LTX-Video."""

from typing import Any

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTXEulerAncestralRFScheduler,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

from tests.census.case import CLIP, NEGATIVE, PICTURE, Case
from tests.tiny.ltx import LATENT_CHANNELS, ltx_vae
from tests.tiny.text_encoders import TEXT_DIM, t5_encoder
from tests.tiny.weights import randomise

# The condition pipelines' decoder is told how much noise is left, and adds its own.
TIMESTEPS: dict[str, Any] = {
    "decoder_inject_noise": (True, False, False, False, False),
    "timestep_conditioning": True,
}

CALL = {
    "negative_prompt": NEGATIVE,
    "height": 32,
    "width": 32,
    "num_frames": 9,
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
    # The autoencoder is one that is told how much noise is left.
    "decode_timestep": 0.05,
    "decode_noise_scale": 0.025,
}


def _parts() -> dict[str, Any]:
    tokenizer, text_encoder = t5_encoder(seed=1)
    transformer = LTXVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=TEXT_DIM,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": ltx_vae(seed=2, **TIMESTEPS),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
    }


def _condition_parts() -> dict[str, Any]:
    return _parts() | {"scheduler": FlowMatchEulerDiscreteScheduler()}


def _long_parts() -> dict[str, Any]:
    return _parts() | {"scheduler": LTXEulerAncestralRFScheduler()}


CASES = [
    Case("LTXPipeline", _parts, CALL),
    Case("LTXImageToVideoPipeline", _parts, CALL | {"image": PICTURE}),
    Case(
        "LTXConditionPipeline",
        _condition_parts,
        CALL | {"conditions": [{"image": PICTURE, "frame_index": 0}, {"video": CLIP, "strength": 0.8}]},
        stock={"conditions": lambda given: [LTXVideoCondition(**one) for one in given]},
    ),
    Case(
        "LTXI2VLongMultiPromptPipeline",
        _long_parts,
        CALL | {"num_frames": 17, "temporal_tile_size": 8, "temporal_overlap": 4, "cond_image": PICTURE},
        prompt="a red fox|a blue whale",
    ),
]
