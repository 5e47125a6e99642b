"""The models that recipes are written for, in their real sizes, without weights.

What diffusers' classes have as defaults is left out; of the rest, and of the text encoders, the numbers are those of
the released models' config.json files.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import diffusers
import transformers
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from torch import nn
from transformers import PreTrainedModel

from weights.on_meta import parameters_on_meta

Build = Callable[[], nn.Module]


def _of_diffusers(name: str, **config: Any) -> Build:
    return lambda: getattr(diffusers, name)(**config)


def _of_transformers(name: str, config: str, **values: Any) -> Build:
    return lambda: getattr(transformers, name)(getattr(transformers, config)(**values))


def _t5(name: str = "T5", vocab_size: int = 32128, **values: Any) -> Build:
    config = {
        "vocab_size": vocab_size,
        "d_model": 4096,
        "d_ff": 10240,
        "d_kv": 64,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    }
    return _of_transformers(f"{name}EncoderModel", f"{name}Config", **config | values)


def _clip(name: str, hidden: int, layers: int, heads: int, **values: Any) -> Build:
    config = "CLIPVisionConfig" if "Vision" in name else "CLIPTextConfig"
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    return _of_transformers(name, config, num_attention_heads=heads, **sizes, **values)


QWEN25_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
QWEN25_VL_7B = _of_transformers(
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2_5_VLConfig",
    text_config=QWEN25_7B,
    vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
)
QWEN3_4B = _of_transformers(
    "Qwen3Model",
    "Qwen3Config",
    vocab_size=151936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
)
MISTRAL_SMALL_24B = _of_transformers(
    "Mistral3ForConditionalGeneration",
    "Mistral3Config",
    text_config={
        "model_type": "mistral",
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    vision_config={
        "model_type": "pixtral",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
)
GEMMA3_12B = _of_transformers(
    "Gemma3ForConditionalGeneration",
    "Gemma3Config",
    text_config={
        "vocab_size": 262208,
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
    },
    vision_config={
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
    },
)
GEMMA2_2B = _of_transformers(
    "Gemma2Model",
    "Gemma2Config",
    vocab_size=256000,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
)
CLIP_L = _clip("CLIPTextModel", 768, 12, 12)
UMT5_XXL = _t5("UMT5", 256384)
FLUX_VAE = _of_diffusers(
    "AutoencoderKL",
    latent_channels=16,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    scaling_factor=0.3611,
    shift_factor=0.1159,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
)
WAN22_VAE = _of_diffusers(
    "AutoencoderKLWan",
    base_dim=160,
    decoder_base_dim=256,
    z_dim=48,
    is_residual=True,
    in_channels=12,
    out_channels=12,
    patch_size=2,
    scale_factor_spatial=16,
    latents_mean=[0.0] * 48,
    latents_std=[1.0] * 48,
)
WAN_I2V = _of_diffusers("WanTransformer3DModel", in_channels=36)

FLUX1: Mapping[str, Build] = {
    "transformer": _of_diffusers("FluxTransformer2DModel", guidance_embeds=True),
    "text_encoder": CLIP_L,
    "text_encoder_2": _t5(),
    "vae": FLUX_VAE,
}
QWEN_IMAGE = {
    "transformer": _of_diffusers("QwenImageTransformer2DModel"),
    "text_encoder": QWEN25_VL_7B,
    "vae": _of_diffusers("AutoencoderKLQwenImage"),
}
WAN21 = {
    "transformer": _of_diffusers("WanTransformer3DModel"),
    "text_encoder": UMT5_XXL,
    "vae": _of_diffusers("AutoencoderKLWan"),
}
HUNYUAN = {
    "transformer": _of_diffusers("HunyuanVideo15Transformer3DModel"),
    "text_encoder": _of_transformers("Qwen2_5_VLTextModel", "Qwen2_5_VLTextConfig", **QWEN25_7B),
    "text_encoder_2": _t5(vocab_size=1510, d_model=1472, d_ff=3584, num_layers=12, num_heads=6),
    "vae": _of_diffusers("AutoencoderKLHunyuanVideo15"),
}

# By recipe: its components.
MODELS: Mapping[str, Mapping[str, Build]] = {
    "flux1-dev": FLUX1,
    "flux1-schnell": FLUX1,
    "flux2-dev": {
        "transformer": _of_diffusers("Flux2Transformer2DModel"),
        "text_encoder": MISTRAL_SMALL_24B,
        "vae": _of_diffusers("AutoencoderKLFlux2"),
    },
    "qwen-image": QWEN_IMAGE,
    "qwen-image-edit": QWEN_IMAGE,
    "z-image-turbo": {
        "transformer": _of_diffusers("ZImageTransformer2DModel"),
        "text_encoder": QWEN3_4B,
        "vae": FLUX_VAE,
    },
    "sd3.5-large": {
        "transformer": _of_diffusers(
            "SD3Transformer2DModel",
            num_layers=38,
            num_attention_heads=38,
            caption_projection_dim=2432,
            pos_embed_max_size=192,
            qk_norm="rms_norm",
        ),
        "text_encoder": _clip("CLIPTextModelWithProjection", 768, 12, 12, projection_dim=768),
        "text_encoder_2": _clip("CLIPTextModelWithProjection", 1280, 32, 20, projection_dim=1280),
        "text_encoder_3": _t5(),
        "vae": FLUX_VAE,
    },
    "wan2.1-t2v-14b": WAN21,
    "wan2.1-i2v-14b": WAN21
    | {
        "transformer": _of_diffusers("WanTransformer3DModel", in_channels=36, image_dim=1280, added_kv_proj_dim=5120),
        "image_encoder": _clip("CLIPVisionModel", 1280, 32, 16, image_size=224, patch_size=14),
    },
    "wan2.2-t2v-a14b": WAN21 | {"transformer_2": WAN21["transformer"]},
    "wan2.2-i2v-a14b": WAN21 | {"transformer": WAN_I2V, "transformer_2": WAN_I2V},
    "wan2.2-ti2v-5b": {
        "transformer": _of_diffusers(
            "WanTransformer3DModel",
            num_attention_heads=24,
            num_layers=30,
            ffn_dim=14336,
            in_channels=48,
            out_channels=48,
        ),
        "text_encoder": UMT5_XXL,
        "vae": WAN22_VAE,
    },
    "hunyuanvideo1.5-t2v": HUNYUAN,
    "hunyuanvideo1.5-i2v": HUNYUAN
    | {
        "image_encoder": _of_transformers(
            "SiglipVisionModel",
            "SiglipVisionConfig",
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
        )
    },
    "ltx-2": {
        "transformer": _of_diffusers("LTX2VideoTransformer3DModel"),
        "text_encoder": GEMMA3_12B,
        "connectors": lambda: LTX2TextConnectors(),
        "vae": _of_diffusers("AutoencoderKLLTX2Video"),
        "audio_vae": _of_diffusers("AutoencoderKLLTX2Audio"),
        "vocoder": lambda: LTX2Vocoder(),
    },
    "sana-1.6b": {
        "transformer": _of_diffusers("SanaTransformer2DModel"),
        "text_encoder": GEMMA2_2B,
        "vae": _of_diffusers("AutoencoderDC"),
    },
}


@cache
def components(recipe: str) -> Mapping[str, nn.Module]:
    """The components of the model that a recipe (by its name) is for, on meta."""
    with parameters_on_meta():
        modules = {name: build() for name, build in MODELS[recipe].items()}
    for module in modules.values():
        if isinstance(module, PreTrainedModel):
            module.tie_weights()  # on meta, each name has a weight of its own so far
    return modules
