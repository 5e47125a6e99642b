"""The included model, grown: the same pipeline, tokenizer and VAE, with a larger text encoder and DiT."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel

SMALL = Path(__file__).resolve().parents[2] / "models" / "emoji-dit"


def write_grown(folder: Path, *, layers: int, heads: int, encoder_layers: int, encoder_width: int) -> dict[str, int]:
    """Write the directory in fp32; the bytes of the weights of each component that grew."""
    shutil.copytree(SMALL, folder, ignore=shutil.ignore_patterns("transformer", "text_encoder", "*.png", "*.md"))
    torch.manual_seed(0)
    config = json.loads((SMALL / "transformer" / "config.json").read_text())
    grown = {"num_layers": layers, "num_attention_heads": heads, "caption_channels": encoder_width}
    grown["cross_attention_dim"] = heads * config["attention_head_dim"]
    transformer = PixArtTransformer2DModel.from_config({**config, **grown})
    transformer.save_pretrained(folder / "transformer")
    config = json.loads((SMALL / "text_encoder" / "config.json").read_text())
    config |= {"num_layers": encoder_layers, "d_model": encoder_width, "d_ff": 4 * encoder_width}
    encoder = T5EncoderModel(T5Config(**config))
    encoder.save_pretrained(folder / "text_encoder")
    parts = {"transformer": transformer, "text_encoder": encoder}
    return {name: sum(p.nbytes for p in part.parameters()) for name, part in parts.items()}
