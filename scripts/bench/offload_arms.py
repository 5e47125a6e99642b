"""The ways to run a Flux whose weights do not fit: ours, the peers', and the resident model that they all stand behind.

Peers get the best setting that was found for them (seconds a step on one thread, the machine quiet): for diffusers
groups of one block, for in leaves a step took three times as long; for accelerate all of a block's weights at once
(`preload_module_classes`) straight from the safetensors files, for the folder of `disk_offload` took twice as long.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
from torch import nn

from bench import page_cache
from offload import offloader_of
from offload.offloaded import Offloaded
from runner.components.groups import Groups
from runner.components.load import load_component
from runner.components.source import Source
from runner.components.whole import load_whole
from runner.config import PlacementConfig, Rest
from runner.world import World

CLASS = diffusers.FluxTransformer2DModel
DTYPE = torch.bfloat16
CPU = torch.device("cpu")
TEXT_TOKENS = 64
_BLOCKS = ["FluxTransformerBlock", "FluxSingleTransformerBlock"]


@dataclass(frozen=True)
class Arm:
    """A model that serves steps, and the files that it reads meanwhile."""

    model: nn.Module
    files: list[Path]

    def begin(self) -> None:
        if offloaded := offloader_of(self.model):
            offloaded.begin()

    def end(self) -> None:
        if offloaded := offloader_of(self.model):
            offloaded.end()


def build(name: str, folder: Path, own: Path, window: int) -> Arm:
    """`folder`: the checkpoint. `own`: an empty folder for an arm that keeps its weights in files of its own.

    `window` is for our arms.
    """
    own.mkdir()
    model = _BUILDERS[name](folder, own, window)
    files = page_cache.files_in(own) or sorted(folder.glob("*.safetensors"))
    page_cache.flush(files)
    return Arm(model, files)


def _resident(folder: Path, _: Path, __: int) -> nn.Module:
    return load_whole(Source(folder.name, CLASS, folder), DTYPE)


def _ours(rest: Rest, folder: Path, _: Path, window: int) -> nn.Module:
    placement = PlacementConfig(rest=rest, window=window)
    return load_component(Source(folder.name, CLASS, folder), DTYPE, placement, World(0, 1, CPU), Groups())[0]


def _diffusers(folder: Path, own: Path, _: int) -> nn.Module:
    model = CLASS.from_pretrained(folder, torch_dtype=DTYPE, local_files_only=True).eval()
    model.enable_group_offload(
        onload_device=CPU,
        offload_device=CPU,
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=str(own),
    )
    return model


def _accelerate(folder: Path, _: Path, __: int) -> nn.Module:
    with accelerate.init_empty_weights(include_buffers=False):
        model = CLASS.from_config(CLASS.load_config(folder, local_files_only=True)).to(DTYPE).eval()
    files = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())["weight_map"]
    index: Any = {
        name: {"safetensors_file": str(folder / file), "weight_name": name, "dtype": "bfloat16"}
        for name, file in files.items()
    }
    return accelerate.dispatch_model(
        model, {"": "disk"}, main_device="cpu", offload_index=index, preload_module_classes=_BLOCKS
    )


_BUILDERS: dict[str, Callable[[Path, Path, int], nn.Module]] = {
    "resident": _resident,
    "ours, disk": partial(_ours, Rest.disk),
    "ours, host": partial(_ours, Rest.host),
    "diffusers": _diffusers,
    "accelerate": _accelerate,
}


def denoise(model: nn.Module, tokens: int, num_steps: int) -> Iterator[torch.Tensor]:
    """Latents (1, tokens - TEXT_TOKENS, 64) after each step of a Flux's denoise loop; the same noise at each call."""
    random = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(DTYPE)

    num_latents = tokens - TEXT_TOKENS
    latents = draw(1, num_latents, 64)
    inputs = {
        "encoder_hidden_states": draw(1, TEXT_TOKENS, 512),
        "pooled_projections": draw(1, 512),
        "img_ids": torch.stack([torch.zeros(num_latents), *_grid(num_latents)], 1),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }
    for step in range(num_steps):
        timestep = torch.tensor([1 - step / num_steps], dtype=DTYPE)
        latents = latents - model(latents, timestep=timestep, return_dict=False, **inputs)[0] / num_steps
        yield latents


def _grid(num_latents: int, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.arange(num_latents)
    return (places // width).float(), (places % width).float()


def transfer(offloaded: Offloaded, num_passes: int) -> Iterator[None]:
    """Fetch all that a step streams, as the ring does for a window of 2, while nothing computes."""
    engine, store = offloaded._engine, offloaded.store
    units = [unit.name for unit in offloaded._streamed]
    buffers = [engine.empty(num_bytes) for num_bytes in offloaded._slot_sizes]
    marks = [engine.mark() for _ in buffers]
    for _ in range(num_passes):
        for i, unit in enumerate(units):
            slot = i % len(buffers)
            engine.wait(marks[slot])
            marks[slot] = engine.copy(store, unit, buffers[slot], after=(marks[slot],))
        for mark in marks:
            engine.wait(mark)
        yield
