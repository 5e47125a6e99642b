"""Amused: it draws the codes of a vector-quantised autoencoder, and no continuous latents."""

from typing import Any

from diffusers import (
    AmusedScheduler,
    UVit2DModel,
    VQModel,
)
from transformers import CLIPTextModelWithProjection

from tests.census.case import MASK, NEGATIVE, PICTURE, Case
from tests.tiny.text_encoders import clip_encoder
from tests.tiny.weights import randomise

CODES = 32
AMUSED = {"num_inference_steps": 2, "guidance_scale": 4.0, "negative_prompt": NEGATIVE}


def vqvae(seed: int, **config: Any) -> VQModel:
    sizes = {"block_out_channels": (4, 8), "norm_num_groups": 2, "latent_channels": 8, "num_vq_embeddings": CODES}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return randomise(VQModel(layers_per_block=1, **sizes, **blocks, **config), seed)


def amused() -> dict[str, Any]:
    tokenizer, text_encoder = clip_encoder(seed=1, model=CLIPTextModelWithProjection)
    transformer = UVit2DModel(
        hidden_size=32,
        cond_embed_dim=32,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=32,
        vocab_size=CODES + 8,
        codebook_size=CODES,
        in_channels=8,
        block_out_channels=8,
        num_res_blocks=1,
        block_num_heads=1,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        sample_size=8,
    )
    return {
        "vqvae": vqvae(seed=2, lookup_from_codebook=True, mid_block_add_attention=False),
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "transformer": randomise(transformer, seed=3),
        "scheduler": AmusedScheduler(mask_token_id=CODES + 7),
    }


CASES = [
    Case("AmusedPipeline", amused, AMUSED | {"height": 16, "width": 16}),
    Case("AmusedImg2ImgPipeline", amused, AMUSED | {"image": PICTURE, "strength": 0.8}),
    Case("AmusedInpaintPipeline", amused, AMUSED | {"image": PICTURE, "mask_image": MASK, "strength": 0.8}),
]
