"""Families with a language model for the prompt, or in the place of the transformer."""

from typing import Any

from diffusers import (
    BriaFiboTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    GlmImageTransformer2DModel,
    HiDreamImageTransformer2DModel,
    LongCatImageTransformer2DModel,
    OmniGenTransformer2DModel,
)
from transformers import (
    ByT5Tokenizer,
    CLIPTextModelWithProjection,
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    GlmImageImageProcessor,
    GlmImageProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5EncoderModel,
)

from tests.census.case import MASK, NEGATIVE, PICTURE, Case
from tests.census.parts import deep_vae, glm_tokenizer, qwen25_vl, qwen_processor, sizes, smollm3, wan_vae
from tests.tiny.image_vae import image_vae
from tests.tiny.text_encoders import clip_encoder, t5_encoder
from tests.tiny.tokenizers import llama_tokenizer
from tests.tiny.weights import randomise

CALL = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 4.0, "negative_prompt": NEGATIVE}
EDIT = {"image": PICTURE, "num_inference_steps": 2, "guidance_scale": 4.0}
GLM = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 2.0}
OMNI = {"height": 32, "width": 32, "num_inference_steps": 2, "input_images": [PICTURE]}
TORCHVISION = ("torchvision",)
JSON = '{"edit_instruction": "a red fox in the deep snow"}'


def bria_fibo() -> dict[str, Any]:
    """Its latents are a 16th of a picture, and each block reads a layer of the language model."""
    tokenizer, text_encoder = smollm3(seed=1)
    transformer = BriaFiboTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=64,
        axes_dims_rope=[2, 2, 4],
        text_encoder_dim=32,
    )
    sixteenth = {"dim_mult": [1] * 5, "temperal_downsample": [False] * 4, "scale_factor_spatial": 16}
    return {
        "transformer": randomise(transformer, seed=2),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": wan_vae(seed=3, **sixteenth),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
    }


def longcat(levels: int = 2) -> dict[str, Any]:
    """A picture to edit is brought to a million pixels: of more levels, the autoencoder leaves few latents of it."""
    tokenizer, text_encoder = qwen25_vl(seed=1)
    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[2, 2, 4],
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": deep_vae(seed=2, latents=16, levels=levels),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "text_processor": qwen_processor(),
        "transformer": randomise(transformer, seed=3),
    }


def hidream() -> dict[str, Any]:
    """Four text encoders, the last a Llama whose layers go to a block each; experts in the blocks."""
    tokenizer, text_encoder = clip_encoder(seed=1, model=CLIPTextModelWithProjection, dim=16)
    tokenizer_2, text_encoder_2 = clip_encoder(seed=2, model=CLIPTextModelWithProjection, dim=16)
    tokenizer_3, text_encoder_3 = t5_encoder(seed=3)
    tokenizer_4 = llama_tokenizer()
    llama = LlamaForCausalLM(LlamaConfig(**sizes(tokenizer_4), attn_implementation="eager"))
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[32, 32],
        text_emb_dim=32,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": image_vae(seed=4, shift_factor=0.1),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder_2,
        "tokenizer_2": tokenizer_2,
        "text_encoder_3": text_encoder_3,
        "tokenizer_3": tokenizer_3,
        "text_encoder_4": randomise(llama, seed=5),
        "tokenizer_4": tokenizer_4,
        "transformer": randomise(transformer, seed=6),
    }


def omnigen() -> dict[str, Any]:
    """No text encoder: prompt and pictures are tokens of the transformer."""
    tokenizer = llama_tokenizer()
    transformer = OmniGenTransformer2DModel(
        in_channels=4,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=2,
        pad_token_id=0,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        original_max_position_embeddings=512,
        rope_scaling={"short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
        pos_embed_max_size=64,
        time_step_dim=8,
    )
    return {
        "transformer": randomise(transformer, seed=1),
        "scheduler": FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        "vae": deep_vae(seed=2, latents=4, levels=4),
        "tokenizer": tokenizer,
    }


def glm_image() -> dict[str, Any]:
    """A language model draws tokens of the picture before the transformer makes it.

    From text only: to edit a picture, stock fails with the features that transformers 5.23 makes of it.
    """
    tokenizer, glyphs = glm_tokenizer(), ByT5Tokenizer()
    codes = 16
    config = GlmImageConfig(
        text_config=sizes(
            tokenizer,
            num_hidden_layers=1,  # of 257 forwards
            vision_vocab_size=codes + 4,
            eos_token_id=codes + 1,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 1, 1],
                "partial_rotary_factor": 1.0,
            },
        ),
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "num_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "intermediate_size": 16,
        },
        vq_config={"embed_dim": 8, "num_embeddings": codes, "latent_channels": 16},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        image_start_token_id=codes,
        image_end_token_id=codes + 1,
    )
    language_model = randomise(GlmImageForConditionalGeneration(config), seed=2)
    language_model.generation_config.eos_token_id = None  # a random one would draw the end in the middle of a picture
    byt5 = T5Config(vocab_size=len(glyphs) + 125, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformer = GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=codes + 4,
    )
    return {
        "tokenizer": glyphs,
        "processor": GlmImageProcessor(
            GlmImageImageProcessor(patch_size=8, merge_size=1, temporal_patch_size=1), tokenizer
        ),
        "text_encoder": randomise(T5EncoderModel(byt5), seed=1),
        "vision_language_encoder": language_model,
        "vae": deep_vae(seed=3, latents=4, levels=4, latents_mean=[0.1] * 4, latents_std=[1.5] * 4),
        "transformer": randomise(transformer, seed=4),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
    }


CASES = [
    Case("BriaFiboPipeline", bria_fibo, CALL),
    Case("BriaFiboEditPipeline", bria_fibo, CALL | {"image": PICTURE, "mask": MASK}, prompt=JSON),
    Case("LongCatImagePipeline", longcat, CALL | {"enable_prompt_rewrite": False}, needs=TORCHVISION),
    Case("HiDreamImagePipeline", hidream, CALL | {"num_inference_steps": 1, "max_sequence_length": 16}),
    Case("LongCatImageEditPipeline", lambda: longcat(6), EDIT, needs=TORCHVISION),
    Case("OmniGenPipeline", omnigen, OMNI, prompt="a red fox <img><|image_1|></img>", needs=TORCHVISION),
    Case("GlmImagePipeline", glm_image, GLM, needs=TORCHVISION),
]
