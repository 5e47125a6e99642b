"""Sound: Stable Audio, ACE-Step, LongCat-AudioDiT. A second has a few thousand samples, or fewer."""

from importlib.util import find_spec
from typing import Any

from diffusers import (
    AceStepTransformer1DModel,
    AutoencoderOobleck,
    AutoencoderSAME,
    CosineDPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LongCatAudioDiTTransformer,
    LongCatAudioDiTVae,
    StableAudio3DiTModel,
    StableAudioDiTModel,
)
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from transformers import Qwen3Model, T5GemmaConfig, T5GemmaEncoderModel

from tests.census.case import NEGATIVE, Case, array
from tests.census.parts import qwen3
from tests.tiny.text_encoders import TEXT_DIM, t5_encoder, umt5_encoder
from tests.tiny.tokenizers import gemma_tokenizer
from tests.tiny.weights import randomise

CHANNELS = 8  # of the latents


def _oobleck(seed: int, rate: int) -> AutoencoderOobleck:
    """Sixteen samples make a latent one."""
    vae = AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[4, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=CHANNELS,
        sampling_rate=rate,
    )
    return randomise(vae, seed)


def stable_audio() -> dict[str, Any]:
    """With the scheduler that it is released with, where that one's package is there."""
    scheduler = CosineDPMSolverMultistepScheduler if find_spec("torchsde") else EDMDPMSolverMultistepScheduler
    tokenizer, text_encoder = t5_encoder(seed=1)
    tokenizer.model_max_length = 16
    transformer = StableAudioDiTModel(
        sample_size=32,
        in_channels=CHANNELS,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=CHANNELS,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=2 * TEXT_DIM,
        cross_attention_input_dim=TEXT_DIM,
    )
    projection = StableAudioProjectionModel(
        text_encoder_dim=TEXT_DIM, conditioning_dim=TEXT_DIM, min_value=0, max_value=8
    )
    return {
        "vae": _oobleck(seed=2, rate=512),
        "text_encoder": text_encoder,
        "projection_model": randomise(projection, seed=3),
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=4),
        "scheduler": scheduler(sigma_max=8.0),
    }


def stable_audio_3() -> dict[str, Any]:
    tokenizer = gemma_tokenizer()
    tokenizer.model_max_length = 16
    config = T5GemmaConfig(
        encoder={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_DIM,
            "intermediate_size": 2 * TEXT_DIM,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
        },
        is_encoder_decoder=False,
        vocab_size=len(tokenizer),
    )
    transformer = StableAudio3DiTModel(
        io_channels=CHANNELS,
        embed_dim=16,
        depth=1,
        num_heads=2,
        cond_token_dim=TEXT_DIM,
        global_cond_dim=TEXT_DIM,
        local_add_cond_dim=CHANNELS + 1,
        timestep_features_dim=8,
        num_memory_tokens=4,
    )
    vae = AutoencoderSAME(
        patch_size=8,
        encoder_channels=8,
        encoder_c_mults=(2,),
        encoder_strides=(4,),
        encoder_transformer_depths=(1,),
        latent_dim=CHANNELS,
        dim_heads=8,
        ff_mult=2,
        sampling_rate=512,
    )
    return {
        "vae": randomise(vae, seed=2),
        "text_encoder": randomise(T5GemmaEncoderModel(config), seed=1),
        "tokenizer": tokenizer,
        "duration_embedder": randomise(StableAudio3DurationEmbedder(output_dim=TEXT_DIM, fourier_dim=8), seed=3),
        "transformer": randomise(transformer, seed=4),
        "scheduler": FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    }


def ace_step() -> dict[str, Any]:
    tokenizer, text_encoder = qwen3(seed=1, model=Qwen3Model)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"head_dim": 8, "sliding_window": 8}
    transformer = AceStepTransformer1DModel(
        **sizes, num_hidden_layers=2, in_channels=3 * CHANNELS, audio_acoustic_hidden_dim=CHANNELS
    )
    conditions = AceStepConditionEncoder(
        **sizes,
        text_hidden_dim=TEXT_DIM,
        timbre_hidden_dim=CHANNELS,
        num_lyric_encoder_hidden_layers=2,
        num_timbre_encoder_hidden_layers=2,
    )
    return {
        "vae": _oobleck(seed=2, rate=400),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
        "condition_encoder": randomise(conditions, seed=4),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def longcat_audio_dit() -> dict[str, Any]:
    tokenizer, text_encoder = umt5_encoder(seed=1)
    transformer = LongCatAudioDiTTransformer(
        dit_dim=16, dit_depth=2, dit_heads=2, dit_text_dim=TEXT_DIM, latent_dim=CHANNELS, ff_mult=2.0
    )
    vae = LongCatAudioDiTVae(
        channels=8,
        c_mults=[1, 2],
        strides=[4],
        latent_dim=CHANNELS,
        encoder_latent_dim=2 * CHANNELS,
        downsampling_ratio=16,
        sample_rate=512,
    )
    return {
        "vae": randomise(vae, seed=2),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
    }


STEPS = {"num_inference_steps": 2}
STABLE_AUDIO_3 = STEPS | {"duration": 1.0}

CASES = [
    Case(
        "StableAudioPipeline",
        stable_audio,
        STEPS | {"negative_prompt": NEGATIVE, "guidance_scale": 7.0, "audio_end_in_s": 1.0},
    ),
    Case("StableAudio3Pipeline", stable_audio_3, STABLE_AUDIO_3 | {"negative_prompt": NEGATIVE, "guidance_scale": 3.0}),
    Case(
        "StableAudio3AudioToAudioPipeline",
        stable_audio_3,
        STABLE_AUDIO_3 | {"audio": array(1, 2, 512), "init_noise_level": 0.6},
    ),
    Case(
        "StableAudio3InpaintPipeline",
        stable_audio_3,
        STABLE_AUDIO_3 | {"audio": array(1, 2, 512), "mask_start_seconds": 0.25, "mask_end_seconds": 0.75},
    ),
    Case("AceStepPipeline", ace_step, STEPS | {"lyrics": "the old clock", "audio_duration": 1.0, "bpm": 90}),
    Case("LongCatAudioDiTPipeline", longcat_audio_dit, STEPS | {"negative_prompt": NEGATIVE, "audio_duration_s": 1.0}),
]
