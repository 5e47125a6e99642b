"""Text encoders and tokenizers beyond those of tests/tiny, and autoencoders that several families share."""

from functools import cache
from typing import Any

from diffusers import AutoencoderKLFlux2, AutoencoderKLWan
from transformers import (
    GlmConfig,
    GlmModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedModel,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from tests.tiny.tokenizers import qwen2_tokenizer
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


def wan_vae(seed: int, latents: int = 4, **others: Any) -> AutoencoderKLWan:
    """A quarter in each direction but two, an eighth in height and width."""
    config = {"base_dim": 4, "z_dim": latents, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    config |= {"latents_mean": [0.1] * latents, "latents_std": [1.5] * latents}
    return randomise(AutoencoderKLWan(**(config | others)), seed)
