"""Stable Audio, of which sound can be made anew: stereo at 16,000 samples a second."""

from pathlib import Path

from diffusers import (
    AutoencoderOobleck,
    EDMDPMSolverMultistepScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)

from .text_encoders import TEXT_DIM, t5_encoder
from .weights import randomise

SAMPLE_RATE = 16_000
CHANNELS = 3  # of the latents


def build(path: Path) -> Path:
    tokenizer, text_encoder = t5_encoder(seed=1)
    tokenizer.model_max_length = 16
    transformer = StableAudioDiTModel(
        sample_size=4,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=TEXT_DIM,
        cross_attention_input_dim=TEXT_DIM,
        time_proj_dim=8,
        global_states_input_dim=2 * TEXT_DIM,
    )
    vae = AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        channel_multiples=[1, 2],
        decoder_channels=CHANNELS,
        decoder_input_channels=CHANNELS,
        audio_channels=2,
        sampling_rate=SAMPLE_RATE,
    )
    projection = StableAudioProjectionModel(TEXT_DIM, TEXT_DIM, 0, 32)
    StableAudioPipeline(
        scheduler=EDMDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
        ),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        transformer=randomise(transformer, seed=2),
        projection_model=randomise(projection, seed=3),
        vae=randomise(vae, seed=4),
    ).save_pretrained(path)
    return path
