"""Text encoders and tokenizers beyond those of tests/tiny, and autoencoders that several families share."""

from functools import cache
from typing import Any

from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLHunyuanVideo, AutoencoderKLWan
from transformers import (
    BertTokenizer,
    GlmConfig,
    GlmModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLVideoProcessor,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from tests.tiny.tokenizers import PRINTABLE, qwen2_tokenizer
from tests.tiny.weights import randomise

# The words of a released chat template, as a tokenizer of ours puts them: turns, pictures as their marks, no thinking.
CHAT_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}


@cache
def chat_tokenizer() -> Qwen2Tokenizer:
    """Knows turns, and the marks of pictures and videos."""
    tokenizer = qwen2_tokenizer()
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_tokens(marks, special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def sizes(tokenizer: Any, **others: Any) -> dict[str, Any]:
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    tokens = {f"{name}_token_id": tokenizer.eos_token_id if id is None else id for name, id in ids.items()}
    return SIZES | {"vocab_size": len(tokenizer)} | tokens | others


def qwen3(seed: int, model: type[PreTrainedModel] = Qwen3ForCausalLM, layers: int = 2) -> tuple[Qwen2Tokenizer, Any]:
    """A Qwen3, with its head (Qwen3ForCausalLM) or without (Qwen3Model)."""
    tokenizer = chat_tokenizer()
    return tokenizer, randomise(model(Qwen3Config(**sizes(tokenizer, num_hidden_layers=layers))), seed)


def glm(seed: int) -> tuple[Qwen2Tokenizer, GlmModel]:
    tokenizer = chat_tokenizer()
    return tokenizer, randomise(GlmModel(GlmConfig(**sizes(tokenizer))), seed)


def smollm3(seed: int, layers: int = 2) -> tuple[Qwen2Tokenizer, SmolLM3ForCausalLM]:
    tokenizer = chat_tokenizer()
    return tokenizer, randomise(SmolLM3ForCausalLM(SmolLM3Config(**sizes(tokenizer, num_hidden_layers=layers))), seed)


def mistral3(seed: int, model: type[PreTrainedModel] = Mistral3ForConditionalGeneration, layers: int = 2) -> Any:
    tokenizer = chat_tokenizer()
    config = Mistral3Config(
        text_config={"model_type": "mistral", **sizes(tokenizer, num_hidden_layers=layers)},
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
            "image_size": 32,
            "patch_size": 8,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
    )
    return tokenizer, randomise(model(config), seed)


def vision(**others: Any) -> dict[str, Any]:
    """Of a Qwen: patches of 14 pixels, four of which make a token."""
    sizes = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 14}
    return sizes | {"out_hidden_size": 32} | others


def marks(tokenizer: Any) -> dict[str, int]:
    names = {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    names |= {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(mark) for name, mark in names.items()}


def qwen25_vl(seed: int) -> tuple[Qwen2Tokenizer, Qwen2_5_VLForConditionalGeneration]:
    tokenizer = chat_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = Qwen2_5_VLConfig(
        text_config=sizes(tokenizer, rope_parameters=rope),
        vision_config=vision(fullatt_block_indexes=[1], window_size=56),
        **marks(tokenizer),
    )
    return tokenizer, randomise(Qwen2_5_VLForConditionalGeneration(config), seed)


def qwen3_vl(
    seed: int, model: type[PreTrainedModel] = Qwen3VLForConditionalGeneration, layers: int = 2
) -> tuple[Qwen2Tokenizer, Any]:
    tokenizer = chat_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = Qwen3VLConfig(
        text_config=sizes(tokenizer, rope_parameters=rope, num_hidden_layers=layers),
        vision_config=vision(num_position_embeddings=16, deepstack_visual_indexes=[0]),
        **marks(tokenizer),
    )
    return tokenizer, randomise(model(config), seed)


def qwen_processor(model: type[ProcessorMixin] = Qwen2VLProcessor) -> ProcessorMixin:
    """For pictures of at most 56 x 56 pixels: larger ones are made as small. Needs torchvision."""
    pixels = {"patch_size": 14, "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}}
    videos = Qwen2VLVideoProcessor if model is Qwen2VLProcessor else Qwen3VLVideoProcessor
    return model(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=chat_tokenizer(),
        video_processor=videos(**pixels),
        chat_template=CHAT_TEMPLATE,
    )


def flux2_vae(seed: int, latents: int = 4) -> AutoencoderKLFlux2:
    """Its latents are laid out in patches of 2x2: four times as many channels for the transformer."""
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=latents,
        norm_num_groups=2,
        sample_size=16,
    )
    return randomise(vae, seed)


def deep_vae(seed: int, latents: int, levels: int, **others: Any) -> AutoencoderKL:
    """Each level but the last halves height and width."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(4,) * levels,
        layers_per_block=1,
        latent_channels=latents,
        norm_num_groups=2,
        scaling_factor=1.0,
        shift_factor=0.1,
        **others,
    )
    return randomise(vae, seed)


def wan_vae(seed: int, latents: int = 4, **others: Any) -> AutoencoderKLWan:
    """A quarter in each direction but two, an eighth in height and width."""
    config = {"base_dim": 4, "z_dim": latents, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    config |= {"latents_mean": [0.1] * latents, "latents_std": [1.5] * latents}
    return randomise(AutoencoderKLWan(**(config | others)), seed)


@cache
def bert_tokenizer() -> BertTokenizer:
    """Characters, and the words that they are the pieces of."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *PRINTABLE, *(f"##{character}" for character in PRINTABLE)]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=77)


@cache
def glm_tokenizer() -> Qwen2Tokenizer:
    """Knows the marks of a picture, and of the grid of the one to make, by name."""
    names = {"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"}
    trained = chat_tokenizer()
    tokenizer = Qwen2Tokenizer(
        tokenizer_object=trained.backend_tokenizer, extra_special_tokens=names, bos_token="<|im_start|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image|>")
    return tokenizer


def hunyuan_video_vae(seed: int, channels: int) -> AutoencoderKLHunyuanVideo:
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=channels,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=1.0,
    )
    return randomise(vae, seed)
