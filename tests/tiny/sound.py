"""Stable Audio with half a second of sound: text to a stereo waveform; guidance in one batch of two."""

from pathlib import Path

from diffusers import (
    AutoencoderOobleck,
    EDMDPMSolverMultistepScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)

from .family import NUM_STEPS, TinyPipeline
from .text_encoders import TEXT_DIM, t5_encoder
from .weights import randomise

LATENT_CHANNELS = 8
SAMPLING_RATE = 4_000
SECONDS = 0.5


def build(path: Path) -> None:
    tokenizer, text_encoder = t5_encoder(seed=1)
    tokenizer.model_max_length = 16  # to which every prompt is padded
    vae = AutoencoderOobleck(
        encoder_hidden_size=2 * LATENT_CHANNELS,  # mean and deviation
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=LATENT_CHANNELS,
        audio_channels=2,
        sampling_rate=SAMPLING_RATE,
    )
    projection = StableAudioProjectionModel(
        text_encoder_dim=TEXT_DIM, conditioning_dim=TEXT_DIM, min_value=0, max_value=32
    )
    transformer = StableAudioDiTModel(
        sample_size=int(SAMPLING_RATE * SECONDS) // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        cross_attention_dim=TEXT_DIM,
        time_proj_dim=8,
        global_states_input_dim=2 * TEXT_DIM,
        cross_attention_input_dim=TEXT_DIM,
    )
    StableAudioPipeline(
        vae=randomise(vae, seed=2),
        text_encoder=text_encoder,
        projection_model=randomise(projection, seed=4),
        tokenizer=tokenizer,
        transformer=randomise(transformer, seed=3),
        scheduler=EDMDPMSolverMultistepScheduler(solver_order=2, prediction_type="v_prediction", sigma_min=0.3),
    ).save_pretrained(path)


STABLE_AUDIO = TinyPipeline(
    name="stable_audio",
    build=build,
    call={
        "num_inference_steps": NUM_STEPS,
        "audio_end_in_s": SECONDS,
        "guidance_scale": 3.0,
    },
    output="audios",
)
