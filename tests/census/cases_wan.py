"""Wan, and the families that are made of its parts."""

from typing import Any

from diffusers import (
    ChronoEditTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)

from tests.census.case import CLIP, NEGATIVE, PICTURE, Case
from tests.census.parts import wan_vae
from tests.census.vision import VISION_DIM, clip_image_processor, clip_vision, clip_vision_with_projection
from tests.tiny.text_encoders import TEXT_DIM, umt5_encoder
from tests.tiny.weights import randomise

CHANNELS = 4  # of the latents
TWO_HEADS = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "out_channels": CHANNELS,
    "text_dim": TEXT_DIM,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 1,
    "rope_max_seq_len": 32,
}
# Behind the latents: a mask for each of the four frames of a latent one, and the latents of the condition.
BESIDE_LATENTS = CHANNELS + 4 + CHANNELS
READS_PICTURES = {"image_dim": VISION_DIM, "added_kv_proj_dim": 24}

SIZE = {"height": 32, "width": 32}
GUIDED = {"negative_prompt": NEGATIVE, "num_inference_steps": 2, "guidance_scale": 5.0}
CALL = SIZE | GUIDED | {"num_frames": 5, "max_sequence_length": 16}
# Where a picture is encoded, the transformer counts on 512 tokens of text.
CALL_WITH_PICTURE = CALL | {"max_sequence_length": 512, "image": PICTURE}


def _parts(transformer: Any, *, flow_shift: float = 3.0, **others: Any) -> dict[str, Any]:
    tokenizer, text_encoder = umt5_encoder(seed=1)
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": wan_vae(seed=2),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift
        ),
        "transformer": randomise(transformer, seed=3),
    } | others


def _image_parts() -> dict[str, Any]:
    return {"image_encoder": clip_vision(seed=4), "image_processor": clip_image_processor()}


def _wan() -> dict[str, Any]:
    low_noise = randomise(WanTransformer3DModel(in_channels=CHANNELS, **TWO_HEADS), seed=5)
    high_noise = WanTransformer3DModel(in_channels=CHANNELS, **TWO_HEADS)
    return _parts(high_noise, transformer_2=low_noise, boundary_ratio=0.875)


def _wan_video_to_video() -> dict[str, Any]:
    return _parts(WanTransformer3DModel(in_channels=CHANNELS, **TWO_HEADS))


def _wan_image_to_video() -> dict[str, Any]:
    return _parts(WanTransformer3DModel(in_channels=BESIDE_LATENTS, **TWO_HEADS, **READS_PICTURES)) | _image_parts()


def _wan_vace() -> dict[str, Any]:
    # The video in two parts, inside and outside the mask, and the mask of 8 x 8 pixels for each latent one.
    control_channels = 2 * CHANNELS + 8 * 8
    return _parts(
        WanVACETransformer3DModel(
            in_channels=CHANNELS, **TWO_HEADS | {"num_layers": 2}, vace_layers=[0, 1], vace_in_channels=control_channels
        )
    )


def _wan_animate() -> dict[str, Any]:
    transformer = WanAnimateTransformer3DModel(
        in_channels=BESIDE_LATENTS,
        latent_channels=CHANNELS,
        **TWO_HEADS,
        **READS_PICTURES,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=1,
    )
    return _parts(transformer) | _image_parts()


def _lucy() -> dict[str, Any]:
    return _parts(WanTransformer3DModel(in_channels=2 * CHANNELS, **TWO_HEADS))


def _chronoedit() -> dict[str, Any]:
    transformer = ChronoEditTransformer3DModel(in_channels=BESIDE_LATENTS, **TWO_HEADS, **READS_PICTURES)
    return _parts(transformer) | _image_parts()


def _skyreels() -> dict[str, Any]:
    return _parts(SkyReelsV2Transformer3DModel(in_channels=CHANNELS, **TWO_HEADS), flow_shift=8.0)


def _skyreels_forcing() -> dict[str, Any]:
    transformer = SkyReelsV2Transformer3DModel(in_channels=CHANNELS, **TWO_HEADS, inject_sample_info=True)
    return _parts(transformer, flow_shift=8.0)


def _skyreels_image_to_video() -> dict[str, Any]:
    transformer = SkyReelsV2Transformer3DModel(in_channels=BESIDE_LATENTS, **TWO_HEADS, **READS_PICTURES)
    return _parts(
        transformer,
        flow_shift=5.0,
        image_encoder=clip_vision_with_projection(seed=4),
        image_processor=clip_image_processor(),
    )


# Two takes of nine frames, the second of which begins with the end of the first.
FORCING = CALL | {"num_frames": 13, "base_num_frames": 9, "overlap_history": 5, "ar_step": 1, "causal_block_size": 1}

CASES = [
    Case("WanPipeline", _wan, CALL | {"guidance_scale_2": 3.0}),
    Case("WanImageToVideoPipeline", _wan_image_to_video, CALL_WITH_PICTURE),
    Case("WanVideoToVideoPipeline", _wan_video_to_video, SIZE | GUIDED | {"video": CLIP, "strength": 0.8}),
    Case("WanVACEPipeline", _wan_vace, CALL | {"num_frames": 9, "video": CLIP, "reference_images": [PICTURE]}),
    Case(
        "WanAnimatePipeline",
        _wan_animate,
        SIZE | GUIDED | {"image": PICTURE, "pose_video": CLIP, "face_video": CLIP, "segment_frame_length": 5},
    ),
    Case("LucyEditPipeline", _lucy, CALL | {"video": CLIP}),
    Case("ChronoEditPipeline", _chronoedit, CALL_WITH_PICTURE),
    Case("SkyReelsV2Pipeline", _skyreels, CALL),
    Case("SkyReelsV2ImageToVideoPipeline", _skyreels_image_to_video, CALL_WITH_PICTURE),
    Case("SkyReelsV2DiffusionForcingPipeline", _skyreels_forcing, FORCING),
    Case("SkyReelsV2DiffusionForcingImageToVideoPipeline", _skyreels_forcing, FORCING | {"image": PICTURE}),
    Case("SkyReelsV2DiffusionForcingVideoToVideoPipeline", _skyreels_forcing, FORCING | {"video": CLIP}),
]
