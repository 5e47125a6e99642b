"""Families that read a prompt with a Qwen3-VL."""

from typing import Any

from diffusers import (
    BriaFibo2Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Ideogram4Transformer2DModel,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    Krea2Transformer2DModel,
    NucleusMoEImageTransformer2DModel,
)
from transformers import Qwen3VLModel, Qwen3VLProcessor

from tests.census.case import NEGATIVE, OTHER, PICTURE, Case
from tests.census.cases_qwenimage import vae as qwenimage_vae
from tests.census.parts import flux2_vae, qwen3_vl, qwen_processor, wan_vae
from tests.tiny.weights import randomise

CALL = {"height": 32, "width": 32, "num_inference_steps": 2}
GUIDED = CALL | {"guidance_scale": 4.0, "negative_prompt": NEGATIVE}
PATCHES = {"patch_size": 16, "in_channels": 768, "out_channels": 768, "scale_factor_spatial": 32}
PATCHES |= {"dim_mult": [1, 1], "temperal_downsample": [False]}
TORCHVISION = ("torchvision",)


def bria_fibo2() -> dict[str, Any]:
    """It reads states from all over the encoder's 36 layers."""
    _, text_encoder = qwen3_vl(seed=1, layers=36)
    transformer = BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=96,
        injection_layer_ids=(0, 0, 0, 1, 1),
        perceiver_num_layers=1,
        min_num_gist_tokens=8,
        max_num_gist_tokens=8,
        gist_step=4,
        gist_min_text_len=4,
        gist_max_text_len=16,
        axes_dims=(4, 4, 4),
        axes_lens=(256, 32, 32),
    )
    return {
        "transformer": randomise(transformer, seed=2),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": flux2_vae(seed=3),
        "text_encoder": text_encoder,
        "processor": qwen_processor(Qwen3VLProcessor),
    }


def krea2() -> dict[str, Any]:
    tokenizer, text_encoder = qwen3_vl(seed=1, model=Qwen3VLModel)
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=32,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": qwenimage_vae(seed=2),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
        "text_encoder_select_layers": [1, 2],
    }


def ideogram4() -> dict[str, Any]:
    """It reads 13 of the encoder's 36 layers, and calls them one by one; guided by a second transformer."""
    tokenizer, text_encoder = qwen3_vl(seed=1, model=Qwen3VLModel, layers=36)
    sizes = {
        "in_channels": 16,
        "num_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "adaln_dim": 8,
        "llm_features_dim": 32 * 13,
        "mrope_section": (2, 1, 1),
    }
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": flux2_vae(seed=2),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": randomise(Ideogram4Transformer2DModel(**sizes), seed=3),
        "unconditional_transformer": randomise(Ideogram4Transformer2DModel(**sizes), seed=4),
    }


def nucleusmoe() -> dict[str, Any]:
    """It reads the eighth layer of the encoder from the end. Two dense blocks, and one with experts."""
    _, text_encoder = qwen3_vl(seed=1, layers=8)
    transformer = NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(2, 2, 4),
        mlp_ratio=12.0,
        dense_moe_strategy="leave_first_block_dense",
        num_experts=4,
        moe_intermediate_dim=8,
        capacity_factors=2.0,
    )
    return {
        "transformer": randomise(transformer, seed=2),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": qwenimage_vae(seed=3),
        "text_encoder": text_encoder,
        "processor": qwen_processor(Qwen3VLProcessor),
    }


def joyimage(model: Any) -> dict[str, Any]:
    """A picture to edit is brought to a million pixels, which the autoencoder takes in patches of 16 x 16."""
    tokenizer, text_encoder = qwen3_vl(seed=1)
    transformer = model(
        in_channels=4, hidden_size=16, num_attention_heads=2, text_dim=32, num_layers=1, rope_dim_list=[2, 2, 4]
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": wan_vae(seed=2, **PATCHES),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
        "processor": qwen_processor(Qwen3VLProcessor),
    }


CASES = [
    Case("BriaFibo2Pipeline", bria_fibo2, GUIDED, needs=TORCHVISION),
    Case("Krea2Pipeline", krea2, GUIDED | {"max_sequence_length": 24}),
    Case("Ideogram4Pipeline", ideogram4, CALL | {"guidance_schedule": [4.0, 3.0], "max_sequence_length": 24}),
    Case("NucleusMoEImagePipeline", nucleusmoe, GUIDED, needs=TORCHVISION),
    Case(
        "JoyImageEditPipeline",
        lambda: joyimage(JoyImageEditTransformer3DModel),
        GUIDED | {"image": PICTURE},
        needs=TORCHVISION,
    ),
    Case(
        "JoyImageEditPlusPipeline",
        lambda: joyimage(JoyImageEditPlusTransformer3DModel),
        GUIDED | {"images": [PICTURE, OTHER], "height": 64, "width": 64},
        needs=TORCHVISION,
    ),
]
