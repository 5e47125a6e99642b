"""The exported model: an ordinary diffusers directory that any PixArt-Sigma pipeline loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline

from .captions import build_tokenizer
from .denoiser import NUM_TRAIN_TIMESTEPS, TextToLatents

_TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def export(directory: Path, autoencoder: AutoencoderKL, denoiser: TextToLatents) -> None:
    """Writes the pipeline in bfloat16; files that are not part of it, such as the model card, stay as they are."""
    pipeline = PixArtSigmaPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=denoiser.text_encoder,
        vae=autoencoder,
        transformer=denoiser.transformer,
        scheduler=DPMSolverMultistepScheduler(
            num_train_timesteps=NUM_TRAIN_TIMESTEPS,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=1.0,
        ),
    ).to(torch.bfloat16)
    partial = directory.with_name(f".partial-{directory.name}")
    pipeline.save_pretrained(partial, safe_serialization=True)
    _name_tokenizer_class(partial)
    _edit(partial / "text_encoder/config.json", dtype="float32")  # or a plain load mixes bfloat16 with float32 models
    directory.mkdir(parents=True, exist_ok=True)
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            target = directory / path.relative_to(partial)
            target.parent.mkdir(exist_ok=True)
            path.chmod(0o644)  # safetensors writes files that only their owner may read
            path.replace(target)
    shutil.rmtree(partial)


def _name_tokenizer_class(directory: Path) -> None:
    """Records the tokenizer under a class that every release of transformers knows.

    transformers 5 writes its own new base class, which older releases, and `from_pretrained` without it, cannot find.
    """
    _edit(directory / "model_index.json", tokenizer=["transformers", _TOKENIZER_CLASS])
    _edit(directory / "tokenizer/tokenizer_config.json", tokenizer_class=_TOKENIZER_CLASS)


def _edit(path: Path, **values: Any) -> None:
    """Sets values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2) + "\n")
