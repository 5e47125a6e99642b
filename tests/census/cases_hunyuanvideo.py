"""HunyuanVideo, what was made of it, and HunyuanVideo 1.5."""

from typing import Any

from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
)
from transformers import (
    ByT5Tokenizer,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

from tests.census.case import NEGATIVE, OTHER, PICTURE, PROMPT, Case
from tests.census.parts import hunyuan_video_vae
from tests.census.vision import VISION_DIM, clip_image_processor, clip_vision, siglip_image_processor, siglip_vision
from tests.tiny.text_encoders import TEXT_DIM, clip_encoder, llama_encoder, qwen_vl_encoder
from tests.tiny.tokenizers import llama_tokenizer
from tests.tiny.weights import randomise

CHANNELS = 4  # of the latents
NUM_TEXT_LAYERS = 3  # the last two of which are not read
SIZES = {"num_attention_heads": 2, "attention_head_dim": 8, "mlp_ratio": 2.0, "rope_axes_dim": (2, 2, 4)}
TRANSFORMER = SIZES | {
    "out_channels": CHANNELS,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": TEXT_DIM,
    "pooled_projection_dim": TEXT_DIM,
}

CALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "max_sequence_length": 24}
GUIDED = CALL | {"negative_prompt": NEGATIVE, "true_cfg_scale": 4.0}

# As the pipeline's own, in fewer words, for pictures of four patches.
WITH_PICTURE = {
    "template": (
        "<|start_header_id|>system<|end_header_id|>\n\n<image>\nDescribe the video:<|eot_id|>\n\n"
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "crop_start": 23,  # tokens before the prompt
    "image_emb_start": 7,
    "image_emb_end": 11,
    "image_emb_len": 4,
}


def _parts(transformer: Any, tokenizer: Any, text_encoder: Any, **others: Any) -> dict[str, Any]:
    tokenizer_2, text_encoder_2 = clip_encoder(seed=2)
    return {
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
        "vae": hunyuan_video_vae(seed=4, channels=CHANNELS),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder_2": text_encoder_2,
        "tokenizer_2": tokenizer_2,
    } | others


def _video() -> dict[str, Any]:
    transformer = HunyuanVideoTransformer3DModel(in_channels=CHANNELS, patch_size=1, **TRANSFORMER)
    return _parts(transformer, *llama_encoder(seed=1, num_layers=NUM_TEXT_LAYERS))


def _skyreels() -> dict[str, Any]:
    transformer = HunyuanVideoTransformer3DModel(in_channels=2 * CHANNELS, patch_size=1, **TRANSFORMER)
    return _parts(transformer, *llama_encoder(seed=1, num_layers=NUM_TEXT_LAYERS))


def _framepack() -> dict[str, Any]:
    transformer = HunyuanVideoFramepackTransformer3DModel(
        in_channels=CHANNELS,
        **TRANSFORMER,
        has_image_proj=True,
        image_proj_dim=VISION_DIM,
        has_clean_x_embedder=True,
    )
    return _parts(
        transformer,
        *llama_encoder(seed=1, num_layers=NUM_TEXT_LAYERS),
        image_encoder=siglip_vision(seed=5),
        feature_extractor=siglip_image_processor(),
    )


def _image_to_video() -> dict[str, Any]:
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=2 * CHANNELS + 1, patch_size=1, **TRANSFORMER, image_condition_type="latent_concat"
    )
    return _parts(transformer, *_llava(seed=1), image_processor=clip_image_processor())


def _llava(seed: int) -> tuple[LlamaTokenizer, LlavaForConditionalGeneration]:
    tokenizer = llama_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    _, text_model = llama_encoder(seed, num_layers=NUM_TEXT_LAYERS)
    text_config = text_model.config
    text_config.vocab_size = len(tokenizer)
    config = LlavaConfig(
        vision_config=clip_vision(seed).config,
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, randomise(LlavaForConditionalGeneration(config), seed)


def _video15(task_type: str = "t2v", **others: Any) -> dict[str, Any]:
    tokenizer, qwen_vl = qwen_vl_encoder(seed=1)
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )
    tokenizer_2 = ByT5Tokenizer()
    byt5 = T5EncoderModel(T5Config(vocab_size=len(tokenizer_2), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=2 * CHANNELS + 1,  # beside the latents: those of the condition, and a mask
        out_channels=CHANNELS,
        num_layers=1,
        num_refiner_layers=1,
        **SIZES,
        text_embed_dim=TEXT_DIM,
        text_embed_2_dim=16,
        image_embed_dim=VISION_DIM,
        target_size=32,
        task_type=task_type,
    )
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8, 8, 8),
        layers_per_block=1,
    )
    return {
        "text_encoder": qwen_vl.model.language_model,
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed=3),
        "vae": randomise(vae, seed=4),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder_2": randomise(byt5, seed=2),
        "tokenizer_2": tokenizer_2,
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    } | others


def _image_to_video15() -> dict[str, Any]:
    return _video15("i2v", image_encoder=siglip_vision(seed=5), feature_extractor=siglip_image_processor())


QUOTED = f'{PROMPT}, beside it the words "old clock"'  # what is in quotes is read by the second encoder
CALL15 = {"negative_prompt": NEGATIVE, "num_frames": 5, "num_inference_steps": 2}

CASES = [
    Case("HunyuanVideoPipeline", _video, GUIDED),
    Case("HunyuanSkyreelsImageToVideoPipeline", _skyreels, GUIDED | {"image": PICTURE}),
    Case(
        "HunyuanVideoImageToVideoPipeline",
        _image_to_video,
        GUIDED | {"image": PICTURE, "num_frames": 9, "prompt_template": WITH_PICTURE, "image_embed_interleave": 2},
    ),
    Case(
        "HunyuanVideoFramepackPipeline",
        _framepack,
        GUIDED | {"image": PICTURE, "last_image": OTHER, "latent_window_size": 2},
    ),
    Case("HunyuanVideo15Pipeline", _video15, CALL15 | {"height": 32, "width": 32}, prompt=QUOTED),
    Case("HunyuanVideo15ImageToVideoPipeline", _image_to_video15, CALL15 | {"image": PICTURE}, prompt=QUOTED),
]
