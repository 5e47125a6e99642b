"""HunyuanVideo: guidance-distilled, with a token refiner, double and single blocks, and Llama read before its end."""

from pathlib import Path

from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)

from .family import NUM_STEPS, TinyPipeline
from .text_encoders import NUM_TEXT_LAYERS, TEXT_DIM, clip_encoder, llama_encoder
from .weights import randomise

LATENT_CHANNELS = 4
NUM_SKIPPED_LAYERS = 2  # the pipeline reads the hidden states this many layers before the end


def build(path: Path) -> None:
    tokenizer, text_encoder = llama_encoder(seed=1, num_layers=NUM_TEXT_LAYERS + NUM_SKIPPED_LAYERS)
    tokenizer_2, text_encoder_2 = clip_encoder(seed=2)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=3,
        num_single_layers=3,
        num_refiner_layers=2,
        mlp_ratio=2.0,
        patch_size=1,
        text_embed_dim=TEXT_DIM,
        pooled_projection_dim=TEXT_DIM,
        rope_axes_dim=(2, 2, 4),
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=1.0,
    )
    HunyuanVideoPipeline(
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=randomise(transformer, seed=3),
        vae=randomise(vae, seed=4),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
    ).save_pretrained(path)


HUNYUANVIDEO = TinyPipeline(
    name="hunyuanvideo",
    build=build,
    call={
        "height": 16,
        "width": 16,
        "num_frames": 5,
        "num_inference_steps": NUM_STEPS,
        "guidance_scale": 6.0,
        "max_sequence_length": 24,
    },
    text_encoders=("text_encoder", "text_encoder_2"),
    output="frames",
    unread=tuple(f"text_encoder.layers.{NUM_TEXT_LAYERS + i}" for i in range(NUM_SKIPPED_LAYERS)),
)
