"""Families that make a clip chunk by chunk, each from those before it: Helios and AnyFlow, of Wan's parts."""

from typing import Any

from diffusers import (
    AnyFlowFARTransformer3DModel,
    AnyFlowTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    HeliosDMDScheduler,
    HeliosScheduler,
    HeliosTransformer3DModel,
)

from tests.census.case import NEGATIVE, PICTURE, Case
from tests.census.cases_wan import CHANNELS, TWO_HEADS
from tests.census.parts import wan_vae
from tests.tiny.text_encoders import TEXT_DIM, umt5_encoder
from tests.tiny.weights import randomise

CALL = {"negative_prompt": NEGATIVE, "height": 32, "width": 32, "guidance_scale": 5.0, "max_sequence_length": 16}


def _parts(transformer: Any, scheduler: Any, **others: Any) -> dict[str, Any]:
    tokenizer, text_encoder = umt5_encoder(seed=1)
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": wan_vae(seed=2),
        "scheduler": scheduler,
        "transformer": randomise(transformer, seed=3),
    } | others


def _helios_transformer() -> HeliosTransformer3DModel:
    return HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_dim=(4, 4, 4),
        is_amplify_history=True,
    )


def _helios() -> dict[str, Any]:
    return _parts(_helios_transformer(), HeliosScheduler(stages=1, stage_range=[0, 1]))


def _helios_pyramid() -> dict[str, Any]:
    return _parts(_helios_transformer(), HeliosDMDScheduler(gamma=0.25), is_distilled=True)


def _anyflow() -> dict[str, Any]:
    transformer = AnyFlowTransformer3DModel(in_channels=CHANNELS, **TWO_HEADS)
    return _parts(transformer, FlowMapEulerDiscreteScheduler(shift=5.0))


def _anyflow_far() -> dict[str, Any]:
    transformer = AnyFlowFARTransformer3DModel(
        in_channels=CHANNELS, **TWO_HEADS, full_chunk_limit=2, chunk_partition=(1, 1, 1)
    )
    return _parts(transformer, FlowMapEulerDiscreteScheduler(shift=5.0))


# Two chunks: nine frames each, from three latent ones.
HELIOS = CALL | {"num_frames": 18, "history_sizes": [4, 2, 1], "num_latent_frames_per_chunk": 3}

CASES = [
    Case("HeliosPipeline", _helios, HELIOS | {"num_inference_steps": 2, "image": PICTURE}),
    Case(
        "HeliosPyramidPipeline",
        _helios_pyramid,
        HELIOS | {"height": 64, "width": 64, "guidance_scale": 1.0, "pyramid_num_inference_steps_list": [1, 1, 1]},
    ),
    Case("AnyFlowPipeline", _anyflow, CALL | {"num_frames": 5, "num_inference_steps": 2}),
    Case(
        "AnyFlowFARPipeline",
        _anyflow_far,
        CALL | {"num_frames": 9, "num_inference_steps": 2},
        # The transformer writes into a cache that the pipeline made; the runner says so where it is not set.
        settings=("execution.leave_inference=weights",),
    ),
]
