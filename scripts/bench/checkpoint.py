"""A checkpoint with random weights, written a few blocks at a time: nothing is ever held whole."""

import json
from pathlib import Path

import accelerate
import diffusers
import torch
from safetensors.torch import save_file

from bench.cases import flux_config

FILE_BYTES = 2**28
# Flux's own depth at a fifth of its width, so that a block is as small a part of the whole: 416M parameters.
CONFIG = flux_config(heads=9, head_dim=64, double_blocks=19, single_blocks=38, text_width=512)


def write_checkpoint(folder: Path) -> int:
    """Write the component's directory in bf16; returns the bytes of its weights."""
    with accelerate.init_empty_weights(include_buffers=False):
        model = diffusers.FluxTransformer2DModel(**CONFIG)
    model.save_config(folder)
    random = torch.Generator().manual_seed(0)
    names: dict[str, str] = {}
    part: dict[str, torch.Tensor] = {}
    part_bytes = total_bytes = 0

    def write_part() -> None:
        nonlocal part, part_bytes, total_bytes
        file = f"diffusion_pytorch_model-{total_bytes:012}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        names.update(dict.fromkeys(part, file))
        total_bytes += part_bytes
        part, part_bytes = {}, 0

    for name, weight in model.state_dict().items():
        part[name] = torch.empty(weight.shape, dtype=torch.bfloat16).normal_(std=0.02, generator=random)
        part_bytes += part[name].nbytes
        if part_bytes >= FILE_BYTES:
            write_part()
    write_part()
    index = {"metadata": {"total_size": total_bytes}, "weight_map": names}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return total_bytes
