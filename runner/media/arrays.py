"""Numbers as they are: arrays as .npy, latents by name in a safetensors file."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from runner.media.image import recipe_json
from runner.output.write import write_whole


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy."""

    def write(temp: Path) -> None:
        with temp.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    write_whole(path, write)


def save_latents(path: Path, latents: Mapping[str, torch.Tensor], recipe: Mapping[str, Any]) -> None:
    """Write tensors by name, in their own dtypes, with the recipe (JSON) as metadata."""
    # Each in memory of its own: safetensors refuses tensors that share theirs, as a pipeline may return one twice.
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in latents.items()}
    write_whole(path, lambda temp: save_file(held, temp, metadata={"recipe": recipe_json(recipe)}))


def latents_hash(latents: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of each tensor's name, dtype, shape and bytes, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(latents.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
