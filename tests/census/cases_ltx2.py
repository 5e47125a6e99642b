"""LTX-2: clips with sound."""

from functools import partial
from typing import Any

from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2VideoTransformer3DModel,
    LTXEulerAncestralRFScheduler,
)
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel, LTX2TextConnectors, LTX2Vocoder
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GemmaTokenizer

from tests.census.case import CLIP, NEGATIVE, PICTURE, Case, array
from tests.census.vision import siglip_vision
from tests.tiny.text_encoders import TEXT_DIM
from tests.tiny.tokenizers import gemma_tokenizer
from tests.tiny.weights import randomise

CHANNELS = 4  # of the latents
AUDIO_CHANNELS, MEL_BINS = 2, 16  # of the sound's latents, which have a quarter as many bins
NUM_TEXT_LAYERS = 2


def _gemma3(seed: int) -> tuple[GemmaTokenizer, Gemma3ForConditionalGeneration]:
    tokenizer = gemma_tokenizer()
    config = Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_DIM,
            "intermediate_size": 2 * TEXT_DIM,
            "num_hidden_layers": NUM_TEXT_LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config=siglip_vision(seed).config.to_dict(),
        mm_tokens_per_image=4,
        image_token_index=len(tokenizer) - 1,
    )
    return tokenizer, randomise(Gemma3ForConditionalGeneration(config), seed)


def _connectors(seed: int) -> LTX2TextConnectors:
    connectors = LTX2TextConnectors(
        caption_channels=TEXT_DIM,
        text_proj_in_factor=NUM_TEXT_LAYERS + 1,  # the hidden states of all layers, and the embeddings
        video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
    )
    return randomise(connectors, seed)


def _transformer(seed: int, **settings: Any) -> LTX2VideoTransformer3DModel:
    transformer = LTX2VideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        vae_scale_factors=(4, 8, 8),
        audio_in_channels=AUDIO_CHANNELS * MEL_BINS // 4,
        audio_out_channels=AUDIO_CHANNELS * MEL_BINS // 4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=TEXT_DIM,
        rope_double_precision=False,
        **settings,
    )
    return randomise(transformer, seed)


def video_vae(seed: int) -> AutoencoderKLLTX2Video:
    vae = AutoencoderKLLTX2Video(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8),
        down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 16),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False),
        downsample_type=("spatiotemporal",) * 2,
        upsample_type=("spatiotemporal",) * 2,
        upsample_residual=(True, True),
        upsample_factor=(2, 2),
        patch_size=2,
    )
    return randomise(vae, seed)


def _audio_vae(seed: int) -> AutoencoderKLLTX2Audio:
    vae = AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=AUDIO_CHANNELS, mel_bins=MEL_BINS
    )
    return randomise(vae, seed)


def _vocoder(seed: int) -> LTX2Vocoder:
    vocoder = LTX2Vocoder(
        in_channels=2 * MEL_BINS,
        hidden_channels=16,
        upsample_kernel_sizes=[10, 4],
        upsample_factors=[5, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
    )
    return randomise(vocoder, seed)


def parts(scheduler: Any = None, **settings: Any) -> dict[str, Any]:
    tokenizer, text_encoder = _gemma3(seed=1)
    return {
        "scheduler": scheduler or FlowMatchEulerDiscreteScheduler(),
        "vae": video_vae(seed=2),
        "audio_vae": _audio_vae(seed=3),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "connectors": _connectors(seed=4),
        "transformer": _transformer(seed=5, **settings),
        "vocoder": _vocoder(seed=6),
    }


# The model of the deep frame refinement: it tells frames that are given from frames to be made.
refining = partial(parts, use_keyframes_abs_pos_embedding=True)


def refining_in_time() -> dict[str, Any]:
    upsampler = LTX2LatentUpsamplerModel(
        in_channels=CHANNELS, mid_channels=32, num_blocks_per_stage=1, spatial_upsample=False, temporal_upsample=True
    )
    scheduler = LTXEulerAncestralRFScheduler(eta=0.5)
    return refining(scheduler) | {"temporal_latent_upsampler": randomise(upsampler, seed=7)}


SIZE = {"height": 32, "width": 32, "num_frames": 9, "frame_rate": 25.0, "max_sequence_length": 16}
CALL = SIZE | {
    "negative_prompt": NEGATIVE,
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "spatio_temporal_guidance_blocks": [1],
}
FEW_STEPS = {"sigmas": [1.0, 0.5]}
CONDITIONS = {"conditions": [{"frames": PICTURE, "index": 0, "crf": 0}, {"frames": CLIP, "index": 1, "strength": 0.8}]}
BUILT = {"conditions": lambda given: [LTX2VideoCondition(**one) for one in given]}

CASES = [
    Case("LTX2Pipeline", parts, CALL),
    Case("LTX2ImageToVideoPipeline", parts, CALL | {"image": PICTURE, "image_crf": 0}),
    Case("LTX2ConditionPipeline", parts, CALL | CONDITIONS, stock=BUILT),
    Case(
        "LTX2InContextPipeline",
        parts,
        CALL | {"reference_conditions": [{"frames": CLIP}]},
        stock={"reference_conditions": lambda given: [LTX2ReferenceCondition(**one) for one in given]},
    ),
    Case(
        "LTX2HDRPipeline",
        parts,
        SIZE | {"num_inference_steps": 2, "reference_conditions": [{"frames": CLIP}]},
        stock={"reference_conditions": lambda given: [LTX2HDRReferenceCondition(**one) for one in given]},
    ),
    Case("LTX2DFRPipeline", refining, SIZE | FEW_STEPS | CONDITIONS, stock=BUILT),
    Case(
        "LTX2DFRTemporalRefinePipeline",
        refining_in_time,
        SIZE
        | {
            "sigmas": [0.9, 0.4],
            "latents": array(1, CHANNELS, 3, 4, 4),
            "keyframes_latents": array(1, CHANNELS, 2, 4, 4),
            "keyframe_positions": [4, 8],
            "audio_latents": array(1, AUDIO_CHANNELS, 9, MEL_BINS // 4),
        },
    ),
]
