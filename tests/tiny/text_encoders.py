"""Text encoders of a few thousand weights, each with the tokenizer it was sized for."""

from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    LlamaConfig,
    LlamaModel,
    LlamaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from .tokenizers import (
    CLIP_LENGTH,
    clip_tokenizer,
    gemma_tokenizer,
    llama_tokenizer,
    qwen2_tokenizer,
    t5_tokenizer,
)
from .weights import randomise

TEXT_DIM = 32
NUM_TEXT_LAYERS = 3

# Grouped-query attention, as in every released decoder: fewer key and value heads than queries.
_DECODER_SIZES = {
    "hidden_size": TEXT_DIM,
    "intermediate_size": 2 * TEXT_DIM,
    "num_hidden_layers": NUM_TEXT_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def clip_encoder(
    seed: int, *, model: type[CLIPTextModel] | type[CLIPTextModelWithProjection] = CLIPTextModel, dim: int = TEXT_DIM
) -> tuple[CLIPTokenizer, CLIPTextModel | CLIPTextModelWithProjection]:
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=dim,
        intermediate_size=2 * dim,
        projection_dim=dim,
        num_hidden_layers=NUM_TEXT_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, randomise(model(config), seed)


def t5_encoder(seed: int) -> tuple[T5Tokenizer, T5EncoderModel]:
    tokenizer = t5_tokenizer()
    return tokenizer, randomise(T5EncoderModel(T5Config(**_t5_sizes(tokenizer))), seed)


def umt5_encoder(seed: int) -> tuple[T5Tokenizer, UMT5EncoderModel]:
    tokenizer = t5_tokenizer()
    return tokenizer, randomise(UMT5EncoderModel(UMT5Config(**_t5_sizes(tokenizer))), seed)


def _t5_sizes(tokenizer: T5Tokenizer) -> dict[str, int | str]:
    return {
        "vocab_size": len(tokenizer),
        "d_model": TEXT_DIM,
        "d_kv": TEXT_DIM // 4,
        "d_ff": 2 * TEXT_DIM,
        "num_layers": NUM_TEXT_LAYERS,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def llama_encoder(seed: int, *, num_layers: int) -> tuple[LlamaTokenizer, LlamaModel]:
    tokenizer = llama_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**_DECODER_SIZES, "num_hidden_layers": num_layers},
    )
    return tokenizer, randomise(LlamaModel(config), seed)


def gemma2_encoder(seed: int) -> tuple[GemmaTokenizer, Gemma2Model]:
    tokenizer = gemma_tokenizer()
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        head_dim=8,
        query_pre_attn_scalar=8,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **_DECODER_SIZES,
    )
    return tokenizer, randomise(Gemma2Model(config), seed)


def qwen3_encoder(seed: int) -> tuple[Qwen2Tokenizer, Qwen3Model]:
    tokenizer = qwen2_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        head_dim=8,
        max_position_embeddings=256,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **_DECODER_SIZES,
    )
    return tokenizer, randomise(Qwen3Model(config), seed)


def qwen_vl_encoder(seed: int) -> tuple[Qwen2Tokenizer, Qwen2_5_VLForConditionalGeneration]:
    """With the vision tower and the language head of the real one, although a text prompt reads neither."""
    tokenizer = qwen2_tokenizer()
    config = Qwen2_5_VLConfig(
        text_config={
            **_DECODER_SIZES,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
            "bos_token_id": tokenizer.eos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 2,
            "out_hidden_size": TEXT_DIM,
            "fullatt_block_indexes": [1],
        },
        # Past the vocabulary: no prompt may hold an image, a video, or their marks.
        image_token_id=len(tokenizer),
        video_token_id=len(tokenizer) + 1,
        vision_start_token_id=len(tokenizer) + 2,
        vision_end_token_id=len(tokenizer) + 3,
    )
    return tokenizer, randomise(Qwen2_5_VLForConditionalGeneration(config), seed)
