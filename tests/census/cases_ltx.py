"""LTX-Video."""

from typing import Any

from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXEulerAncestralRFScheduler,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

from tests.census.case import CLIP, NEGATIVE, PICTURE, Case
from tests.tiny.text_encoders import TEXT_DIM, t5_encoder
from tests.tiny.weights import randomise

CHANNELS = 8  # of the latents

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


def _vae(seed: int) -> AutoencoderKLLTXVideo:
    vae = AutoencoderKLLTXVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(True, False, False, False, False),
        timestep_conditioning=True,
        patch_size=2,
    )
    return randomise(vae, seed)


def _parts() -> dict[str, Any]:
    tokenizer, text_encoder = t5_encoder(seed=1)
    transformer = LTXVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=TEXT_DIM,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": _vae(seed=2),
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
