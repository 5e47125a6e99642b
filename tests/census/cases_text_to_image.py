"""Families with one or two text encoders and an ordinary autoencoder, each with few classes of its own."""

from typing import Any

from diffusers import (
    AuraFlowTransformer2DModel,
    BriaTransformer2DModel,
    ChromaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    OvisImageTransformer2DModel,
    PRXTransformer2DModel,
)
from transformers import Qwen3Model

from tests.census.case import MASK, NEGATIVE, OTHER, PICTURE, Case
from tests.census.parts import glm, qwen3
from tests.tiny.image_vae import image_vae
from tests.tiny.text_encoders import gemma2_encoder, t5_encoder, umt5_encoder
from tests.tiny.weights import randomise

CALL = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 4.0, "negative_prompt": NEGATIVE}
SHORT = CALL | {"max_sequence_length": 16}
LUMINA = SHORT | {"height": 64, "width": 64}  # it takes the autoencoder for one of eighths, and ours halves
IMG2IMG = SHORT | {"image": PICTURE, "strength": 0.8}
FLUX_SIZES = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (2, 2, 4),
}


def parts(text: tuple[Any, Any], transformer: Any, scheduler: Any = None, latents: int = 4) -> dict[str, Any]:
    tokenizer, text_encoder = text
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": image_vae(seed=2, latent_channels=latents, shift_factor=0.1),
        "transformer": randomise(transformer, seed=3),
        "scheduler": scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def chroma() -> dict[str, Any]:
    transformer = ChromaTransformer2DModel(
        in_channels=16, **FLUX_SIZES, approximator_num_channels=8, approximator_hidden_dim=8, approximator_layers=1
    )
    transformer.register_to_config(guidance_embeds=False)  # as the config files have it: the inpainting class asks
    return parts(t5_encoder(seed=1), transformer)


def aura_flow() -> dict[str, Any]:
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    )
    return parts(umt5_encoder(seed=1), transformer)


def bria() -> dict[str, Any]:
    return parts(t5_encoder(seed=1), BriaTransformer2DModel(in_channels=16, **FLUX_SIZES))


def cogview3() -> dict[str, Any]:
    transformer = CogView3PlusTransformer2DModel(
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
    )
    return parts(t5_encoder(seed=1), transformer, CogVideoXDDIMScheduler(rescale_betas_zero_snr=True))


def cogview4(in_channels: int = 4) -> dict[str, Any]:
    """The control model takes a control picture's latents beside its own."""
    transformer = CogView4Transformer2DModel(
        in_channels=in_channels,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=8,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    return parts(glm(seed=1), transformer, scheduler)


def ovis() -> dict[str, Any]:
    sizes = {"in_channels": 16, "out_channels": 16, **FLUX_SIZES}
    return parts(qwen3(seed=1, model=Qwen3Model), OvisImageTransformer2DModel(**sizes))


def lumina() -> dict[str, Any]:
    transformer = LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        learn_sigma=True,
        cross_attention_dim=32,
    )
    return parts(gemma2_encoder(seed=1), transformer)


def lumina2() -> dict[str, Any]:
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(64, 32, 32),
        cap_feat_dim=32,
    )
    return parts(gemma2_encoder(seed=1), transformer)


def dit() -> dict[str, Any]:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    return {
        "transformer": randomise(transformer, seed=1),
        "vae": image_vae(seed=2),
        "scheduler": DDIMScheduler(),
    }


def prx() -> dict[str, Any]:
    transformer = PRXTransformer2DModel(
        in_channels=4, context_in_dim=32, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=1, axes_dim=[4, 4]
    )
    return parts(gemma2_encoder(seed=1), transformer) | {"default_sample_size": 256}


def prx_pixel() -> dict[str, Any]:
    """Pixels in the place of latents: no autoencoder."""
    transformer = PRXTransformer2DModel(
        in_channels=3,
        patch_size=4,
        context_in_dim=32,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[4, 4],
        bottleneck_size=8,
        resolution_embeds=True,
    )
    made = parts(qwen3(seed=1, model=Qwen3Model), transformer)
    del made["vae"]
    return made | {"default_sample_size": 256, "prompt_max_tokens": 16}


CASES = [
    Case("ChromaPipeline", chroma, SHORT),
    Case("ChromaImg2ImgPipeline", chroma, IMG2IMG),
    Case("ChromaInpaintPipeline", chroma, IMG2IMG | {"mask_image": MASK}),
    Case("AuraFlowPipeline", aura_flow, SHORT),
    Case("BriaPipeline", bria, SHORT),
    Case("CogView3PlusPipeline", cogview3, SHORT),
    Case("CogView4Pipeline", cogview4, SHORT),
    Case("CogView4ControlPipeline", lambda: cogview4(8), SHORT | {"control_image": OTHER}),
    Case("OvisImagePipeline", ovis, SHORT),
    Case("LuminaPipeline", lumina, LUMINA | {"clean_caption": False}),
    Case("Lumina2Pipeline", lumina2, LUMINA),
    Case("DiTPipeline", dit, {"num_inference_steps": 2, "guidance_scale": 4.0}, prompt=207),
    Case("PRXPipeline", prx, CALL | {"use_resolution_binning": False, "tokenizer_max_length": 16}),
    Case("PRXPixelPipeline", prx_pixel, CALL | {"use_resolution_binning": False}),
]
