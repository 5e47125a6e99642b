"""Hunyuan-DiT, and HunyuanImage with its refiner."""

from typing import Any

from diffusers import (
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanImageRefiner,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DControlNetModel,
    HunyuanDiT2DModel,
    HunyuanImageTransformer2DModel,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance
from transformers import BertConfig, BertModel, ByT5Tokenizer, T5Config, T5EncoderModel

from tests.census.case import NEGATIVE, OTHER, PICTURE, Case
from tests.census.parts import bert_tokenizer, qwen25_vl
from tests.tiny.image_vae import image_vae
from tests.tiny.text_encoders import t5_encoder
from tests.tiny.weights import randomise

DIT = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 4.0, "negative_prompt": NEGATIVE}
DIT |= {"use_resolution_binning": False}
DIT_SIZES = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "hidden_size": 16,
    "mlp_ratio": 2.0,
    "cross_attention_dim": 32,
    "cross_attention_dim_t5": 32,
    "pooled_projection_dim": 32,
    "text_len": 77,
    "text_len_t5": 256,
    "use_style_cond_and_image_meta_size": True,
}
CALL = {"height": 32, "width": 32, "num_inference_steps": 2, "negative_prompt": NEGATIVE}
SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": 32,
}


def dit() -> dict[str, Any]:
    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    tokenizer_2, text_encoder_2 = t5_encoder(seed=2)
    return {
        "vae": image_vae(seed=3),
        "text_encoder": randomise(BertModel(config), seed=1),
        "tokenizer": tokenizer,
        "transformer": randomise(HunyuanDiT2DModel(num_layers=4, **DIT_SIZES), seed=4),
        "scheduler": DDPMScheduler(prediction_type="v_prediction", beta_end=0.03),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
        "text_encoder_2": text_encoder_2,
        "tokenizer_2": tokenizer_2,
    }


def dit_controlnet() -> dict[str, Any]:
    controlnet = HunyuanDiT2DControlNetModel(transformer_num_layers=4, **DIT_SIZES)
    return dit() | {"controlnet": randomise(controlnet, seed=5)}


def image() -> dict[str, Any]:
    """The second text encoder reads what is to be written in the picture, byte by byte."""
    tokenizer, text_encoder = qwen25_vl(seed=1)
    tokenizer_2 = ByT5Tokenizer()
    glyphs = T5Config(
        vocab_size=len(tokenizer_2) + 125, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, is_gated_act=True
    )
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=4,
        sample_size=32,
        scaling_factor=0.8,
    )
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, **SIZES, text_embed_2_dim=32, rope_axes_dim=(4, 4)
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "vae": randomise(vae, seed=2),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "text_encoder_2": randomise(T5EncoderModel(glyphs), seed=3),
        "tokenizer_2": tokenizer_2,
        "transformer": randomise(transformer, seed=4),
        "guider": AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
        "ocr_guider": AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1, guidance_scale=2.0),
    }


def refiner() -> dict[str, Any]:
    tokenizer, text_encoder = qwen25_vl(seed=1)
    vae = AutoencoderKLHunyuanImageRefiner(
        latent_channels=2,  # and two frames of it beside each other
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    )
    transformer = HunyuanImageTransformer2DModel(
        in_channels=8, out_channels=4, **SIZES, patch_size=(1, 1, 1), rope_axes_dim=(4, 2, 2), guidance_embeds=True
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=4.0),
        "vae": randomise(vae, seed=2),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
        "guider": AdaptiveProjectedMixGuidance(enabled=False),
    }


CASES = [
    Case("HunyuanDiTPipeline", dit, DIT | {"original_size": [48, 32]}, stock={"original_size": tuple}),
    Case("HunyuanDiTPAGPipeline", dit, DIT | {"pag_scale": 2.0}),
    Case("HunyuanDiTControlNetPipeline", dit_controlnet, DIT | {"control_image": OTHER}),
    Case("HunyuanImagePipeline", image, CALL, prompt='a sign with the words "red fox"'),
    Case("HunyuanImageRefinerPipeline", refiner, CALL | {"image": PICTURE}),
]
