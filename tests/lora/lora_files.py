"""Random adapters for tiny pipelines, written by the libraries, and the libraries applying them: the oracle."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn

from lora import Terms, write_merged
from tests import tiny

WITH_LOADER = ("flux", "sd3", "qwenimage", "wan")
WITHOUT_LOADER = ("pixart", "dit")
LINEAR = r".*(to_q|to_k|to_v|to_out\.0|add_q_proj|net\.0\.proj|net\.2|proj_mlp)|x_embedder|img_in"
CONVOLUTIONS = r"patch_embedding|pos_embed\.proj"  # of sd3, wan, pixart and dit
TARGETS = f"{LINEAR}|{CONVOLUTIONS}"


def modules_of(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def open_tiny(name: str, root: Path, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    return tiny.load_stock(tiny.build(name, root), dtype)


def picture(pipeline: DiffusionPipeline, name: str) -> Any:
    family = tiny.FAMILIES[name]
    return tiny.call_stock(pipeline, family, family.prompts[0], 0)


def make_factors(module: nn.Module, *, seed: int, rank: int = 4, targets: str = TARGETS) -> dict[str, torch.Tensor]:
    """peft's own factors for every matching layer, drawn so that they change the output visibly."""
    matching = [
        name
        for name, layer in module.named_modules()
        if re.fullmatch(targets, name) and isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d)
    ]
    assert matching, f"nothing in {type(module).__name__} matches {targets}"
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name in matching:
        weight = module.get_submodule(name).weight
        ones = (1,) * (weight.ndim - 2)
        down = torch.randn(rank, *weight.shape[1:], generator=generator) * weight[0].numel() ** -0.5
        factors[f"{name}.lora_A.weight"] = down
        factors[f"{name}.lora_B.weight"] = torch.randn(weight.shape[0], rank, *ones, generator=generator) * 0.3
    return factors


def save_adapter(
    pipeline: DiffusionPipeline,
    folder: Path,
    *,
    seed: int,
    rank: int = 4,
    alpha: float = 6.0,
    dtype: torch.dtype = torch.float32,
    text_encoder: bool = False,
    targets: str = TARGETS,
    **config: Any,
) -> Path:
    """A random adapter of the transformer, in diffusers' format if the pipeline has a loader, else in peft's."""
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": targets, **config}
    factors = make_factors(pipeline.transformer, seed=seed, rank=rank, targets=targets)
    factors = {key: value.to(dtype) for key, value in factors.items()}
    if not hasattr(pipeline, "load_lora_weights"):
        folder.mkdir(parents=True)
        stored = {f"base_model.model.{key}": value for key, value in factors.items()}
        save_file(stored, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
        return folder
    layers: dict[str, Any] = {"transformer_lora_layers": factors, "transformer_lora_adapter_metadata": settings}
    if text_encoder:
        encoder = make_factors(pipeline.text_encoder, seed=seed + 1, rank=rank, targets=r".*(q_proj|out_proj)")
        layers["text_encoder_lora_layers"] = encoder
        layers["text_encoder_lora_adapter_metadata"] = {**settings, "target_modules": ["q_proj", "out_proj"]}
    type(pipeline).save_lora_weights(folder, **layers)
    return folder


class Stock:
    """The libraries' own way: diffusers' loaders where the pipeline has them, else peft on the module."""

    def __init__(self, pipeline: DiffusionPipeline, folders: Mapping[str, Path]) -> None:
        self.pipeline = pipeline
        for name, folder in folders.items():
            if hasattr(pipeline, "load_lora_weights"):
                pipeline.load_lora_weights(folder, adapter_name=name, local_files_only=True)
            else:
                self._inject(folder, name)

    def _inject(self, folder: Path, name: str) -> None:
        config = LoraConfig.from_pretrained(str(folder))
        inject_adapter_in_model(config, self.pipeline.transformer, adapter_name=name)
        state = load_file(folder / "adapter_model.safetensors")
        state = {key.removeprefix("base_model.model."): value for key, value in state.items()}
        wrong = set_peft_model_state_dict(self.pipeline.transformer, state, name)
        assert not wrong.unexpected_keys
        assert set(get_peft_model_state_dict(self.pipeline.transformer, adapter_name=name)) == set(state)

    def set(self, active: Mapping[str, float]) -> None:
        if hasattr(self.pipeline, "set_adapters"):
            self.pipeline.set_adapters(list(active), list(active.values()))
            return
        for layer in self._layers(self.pipeline.transformer):
            layer.set_adapter(list(active))
            for name, weight in active.items():
                layer.set_scale(name, weight)

    def fuse(self) -> None:
        for module in modules_of(self.pipeline).values():
            for layer in self._layers(module):
                layer.merge()

    def weights(self, component: str = "transformer") -> dict[str, torch.Tensor]:
        """By the names that the module has without adapters."""
        state = modules_of(self.pipeline)[component].state_dict()
        return {key.replace(".base_layer", ""): value for key, value in state.items() if ".lora_" not in key}

    @staticmethod
    def _layers(module: nn.Module) -> list[Any]:
        return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


def merged(base: torch.Tensor, terms: Terms, origin: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """A new tensor: `base` with the terms added."""
    return write_merged(torch.empty_like(base), base, terms, origin)
