"""Components in safetensors files for the tests of the stores, and what a store must hold of them."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from offload.stores.packing import views
from offload.stores.store import Store

Tensors = dict[str, torch.Tensor]


def save(directory: Path, tensors: Tensors, num_files: int = 1) -> Path:
    """Write a component's directory as diffusers does; with several files, neighbours are in different ones."""
    directory.mkdir(parents=True, exist_ok=True)
    if num_files == 1:
        save_file(tensors, directory / "diffusion_pytorch_model.safetensors")
        return directory
    names = [f"diffusion_pytorch_model-{i + 1:05}-of-{num_files:05}.safetensors" for i in range(num_files)]
    weight_map = {key: names[i % num_files] for i, key in enumerate(tensors)}
    for name in names:
        save_file({key: tensors[key] for key in tensors if weight_map[key] == name}, directory / name)
    index = directory / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def varied(num_blocks: int = 3) -> Tensors:
    """Blocks and a rest, of many dtypes and shapes: odd sizes, no dims, no elements."""
    generator = torch.Generator().manual_seed(0)

    def floats(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {"embed.weight": floats(7, 5), "scale": floats(), "steps": torch.tensor(17), "none": floats(0, 3)}
    for i in range(num_blocks):
        tensors |= {
            f"blocks.{i}.conv.weight": floats(6, 4, 3, 3).bfloat16(),
            f"blocks.{i}.norm.weight": floats(13),
            f"blocks.{i}.norm.gain": floats(),
            f"blocks.{i}.half": floats(3, 3).half(),
            f"blocks.{i}.mask": torch.tensor([True, False, True]),
            f"blocks.{i}.index": torch.arange(i, i + 9).reshape(3, 3),
            f"blocks.{i}.small": torch.tensor([1, -2, 3], dtype=torch.int8),
            f"blocks.{i}.fp8": floats(5).to(torch.float8_e4m3fn),
        }
    return tensors


def blockwise(tensors: Mapping[str, torch.Tensor]) -> dict[str, Tensors]:
    """The units of a component whose blocks are called "blocks.0" and so on; on meta, as a loader plans them."""
    units: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        unit = ".".join(name.split(".")[:2]) if name.startswith("blocks.") else ""
        units.setdefault(unit, {})[name] = tensor.to("meta")
    return units


def contents(store: Store) -> Tensors:
    """Every tensor of a store, read as the copy engine reads it."""
    tensors = {}
    for unit, packing in store.packings.items():
        out = torch.full((packing.num_bytes,), 0xA5, dtype=torch.uint8)
        store.read(unit, out)
        tensors |= views(packing, out)
    return tensors


def expect_equal(found: Tensors, wanted: Tensors) -> None:
    """Bit by bit, and laid out alike."""
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert tensor.dtype == wanted[name].dtype, name
        assert tensor.shape == wanted[name].shape, name
        assert tensor.stride() == wanted[name].stride() or tensor.numel() == 0, name
        assert bits(tensor) == bits(wanted[name]), name


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
