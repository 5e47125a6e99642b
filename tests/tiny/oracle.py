"""The oracle: the tiny pipeline on one device, loaded and called the stock way."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn

from .family import TinyPipeline


def load_stock(path: Path, dtype: torch.dtype = torch.float32, **parts: Any) -> DiffusionPipeline:
    """The pipeline as `from_pretrained` gives it with these `parts`, every weight moved into memory of its own.

    Freshly loaded weights are views of the mapped safetensors file, at offsets that need not be aligned. CPU kernels
    pick their instructions by alignment, which moves the last bit: two layouts of the same weights agree bit for bit
    only once both come from the allocator.
    """
    pipeline = DiffusionPipeline.from_pretrained(path, dtype=dtype, **parts)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            for tensor in (*component.parameters(), *component.buffers()):
                tensor.data = tensor.data.clone()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call_stock(
    pipeline: DiffusionPipeline, family: TinyPipeline, prompt: Any, seed: int, *, output_type: str = "np"
) -> np.ndarray | torch.Tensor | list[Image.Image]:
    """The picture or video: an array for "np", images for "pil", a tensor for "latent".

    DiTPipeline knows no "latent" and returns the "np" array instead.
    """
    with torch.inference_mode():
        output = pipeline(
            **family.call,
            **{family.prompt_argument: prompt},
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type=output_type,
        )
    return output[family.output]


def stock(
    path: Path,
    family: TinyPipeline,
    prompt: Any,
    seed: int,
    *,
    output_type: str = "np",
    dtype: torch.dtype = torch.float32,
) -> np.ndarray | torch.Tensor | list[Image.Image]:
    """`call_stock` on a pipeline freshly loaded for this one call."""
    return call_stock(load_stock(path, dtype), family, prompt, seed, output_type=output_type)
