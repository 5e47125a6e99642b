"""Sana: linear attention, a decoder-only text encoder, a deep-compression autoencoder, guidance in a batch of two."""

from pathlib import Path

from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

from .family import NEGATIVE_PROMPT, NUM_STEPS, TinyPipeline
from .text_encoders import TEXT_DIM, gemma2_encoder
from .weights import randomise

LATENT_CHANNELS = 4


def build(path: Path) -> None:
    tokenizer, text_encoder = gemma2_encoder(seed=1)
    vae = AutoencoderDC(
        latent_channels=LATENT_CHANNELS,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        encoder_qkv_multiscales=((), (), (), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,)),
    )
    transformer = SanaTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=4,
        num_cross_attention_heads=4,
        cross_attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=TEXT_DIM,
        sample_size=4,
    )
    SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=randomise(vae, seed=2),
        transformer=randomise(transformer, seed=3),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ).save_pretrained(path)


SANA = TinyPipeline(
    name="sana",
    build=build,
    call={
        "negative_prompt": NEGATIVE_PROMPT,
        "height": 32,
        "width": 32,
        "num_inference_steps": NUM_STEPS,
        "guidance_scale": 4.5,
        "max_sequence_length": 16,
        "use_resolution_binning": False,
        "complex_human_instruction": None,  # 400 tokens of prompt engineering
    },
)
