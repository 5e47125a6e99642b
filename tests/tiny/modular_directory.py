"""Modular pipelines as directories, and the oracle that calls them the stock way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ModularPipeline
from PIL import Image
from torch import nn

from .family import TinyPipeline


def write_modular(path: Path, cls: type[ModularPipeline], **parts: Any) -> None:
    """As a copy of a repository has it: its index names the repository, and not the folder that it was copied to."""
    pipeline = cls()
    pipeline.update_components(**parts)
    pipeline.save_pretrained(str(path), overwrite_modular_index=True)
    file = path / ModularPipeline.config_name
    index = json.loads(file.read_text())
    for entry in index.values():
        if isinstance(entry, list) and entry[2]["pretrained_model_name_or_path"]:
            entry[2]["pretrained_model_name_or_path"] = f"example/{cls.__name__}"
    file.write_text(json.dumps(index, indent=2))


def load_modular(path: Path, dtype: torch.dtype = torch.float32) -> ModularPipeline:
    """As diffusers loads it, every weight moved into memory of its own (see `load_stock`)."""
    pipeline = ModularPipeline.from_pretrained(path)
    pipeline.load_components(dtype=dtype)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            for tensor in (*component.parameters(), *component.buffers()):
                tensor.data = tensor.data.clone()
    return pipeline


def call_modular(
    pipeline: ModularPipeline, family: TinyPipeline, prompt: str, seed: int, *, output_type: str = "np", **call: Any
) -> np.ndarray | torch.Tensor | list[Image.Image]:
    with torch.inference_mode():
        return pipeline(
            **{**family.call, **call},
            prompt=prompt,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type=output_type,
            output=family.output,
        )
