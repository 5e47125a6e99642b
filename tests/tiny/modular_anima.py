"""Anima: a model that exists only as a modular pipeline; a Cosmos transformer over the states of Qwen3, guider."""

from pathlib import Path

from diffusers import (
    AnimaModularPipeline,
    AnimaTextConditioner,
    AutoencoderKLQwenImage,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)

from .family import NEGATIVE_PROMPT, NUM_STEPS, TinyPipeline
from .modular_directory import write_modular
from .text_encoders import TEXT_DIM, qwen3_encoder
from .tokenizers import t5_tokenizer
from .weights import randomise

LATENT_CHANNELS = 4


def build(path: Path) -> None:
    tokenizer, text_encoder = qwen3_encoder(seed=1)
    t5 = t5_tokenizer()
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1] * LATENT_CHANNELS,
        latents_std=[1.5] * LATENT_CHANNELS,
    )
    conditioner = AnimaTextConditioner(
        source_dim=TEXT_DIM,
        target_dim=TEXT_DIM,
        model_dim=TEXT_DIM,
        num_layers=3,
        num_attention_heads=4,
        target_vocab_size=len(t5),
        min_sequence_length=16,
    )
    transformer = CosmosTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=4,
        attention_head_dim=12,
        num_layers=4,
        mlp_ratio=2.0,
        text_embed_dim=TEXT_DIM,
        adaln_lora_dim=8,
        max_size=(4, 32, 32),
        extra_pos_embed_type=None,
        concat_padding_mask=False,  # which takes torchvision
    )
    write_modular(
        path,
        AnimaModularPipeline,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        t5_tokenizer=t5,
        vae=randomise(vae, seed=2),
        text_conditioner=randomise(conditioner, seed=3),
        transformer=randomise(transformer, seed=4),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


ANIMA = TinyPipeline(
    name="modular_anima",
    build=build,
    call={
        "negative_prompt": NEGATIVE_PROMPT,
        "height": 32,
        "width": 32,
        "num_inference_steps": NUM_STEPS,
        "max_sequence_length": 16,
    },
    denoisers=("text_conditioner", "transformer"),
)
