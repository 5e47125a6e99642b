"""Stable Diffusion 3.5: three text encoders, and blocks that differ (two with a second attention, a last one without
a context output), guided in one batch of two."""

from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from .family import NEGATIVE_PROMPT, NUM_STEPS, TinyPipeline
from .image_vae import LATENT_CHANNELS, image_vae
from .text_encoders import TEXT_DIM, clip_encoder, t5_encoder
from .weights import randomise

CLIP_DIM = TEXT_DIM // 2  # the two CLIP embeddings are laid side by side, and padded to T5's width


def build(path: Path) -> None:
    tokenizer, text_encoder = clip_encoder(seed=1, model=CLIPTextModelWithProjection, dim=CLIP_DIM)
    tokenizer_2, text_encoder_2 = clip_encoder(seed=2, model=CLIPTextModelWithProjection, dim=CLIP_DIM)
    tokenizer_3, text_encoder_3 = t5_encoder(seed=3)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=TEXT_DIM,
        caption_projection_dim=32,
        pooled_projection_dim=2 * CLIP_DIM,
        pos_embed_max_size=8,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )
    StableDiffusion3Pipeline(
        transformer=randomise(transformer, seed=4),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=image_vae(seed=5, shift_factor=0.1),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    ).save_pretrained(path)


SD3 = TinyPipeline(
    name="sd3",
    build=build,
    call={
        "negative_prompt": NEGATIVE_PROMPT,
        "height": 16,
        "width": 16,
        "num_inference_steps": NUM_STEPS,
        "guidance_scale": 4.5,
        "max_sequence_length": 24,
    },
    text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
)
