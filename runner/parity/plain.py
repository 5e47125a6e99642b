"""The pipeline that a job is held against: the libraries' own, loaded and called as a script of a few lines does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from runner.calls.randomness import set_global_generators
from runner.components.changing import set_on
from runner.components.directory import Directory
from runner.components.fits import require_room_whole
from runner.components.load import empty
from runner.components.whole import from_pretrained, load_whole
from runner.config import (
    ExecutionConfig,
    LoraConfig,
    LoraMode,
    MeshConfig,
    PlacementConfig,
    Rest,
    RunConfig,
    adapter_name,
)
from runner.errors import UserError
from runner.inputs.arguments import arguments_of
from runner.inputs.decode import decoded
from runner.pipeline.open import open_pipeline
from runner.request import Request
from runner.world import World
from weights.modes import normal_mode
from weights.room import NoRoom

Strengths = Mapping[str, float]


@dataclass(frozen=True)
class Plain:
    """`make` gives what the pipeline's own call for a request gives; `stock` is the pipeline, `how` it was opened."""

    stock: Any
    how: str
    make: Callable[[Request], Any]


def open_plain(config: RunConfig, directory: Directory, device: torch.device, lora: Strengths) -> Plain:
    """For requests with these adapters: the stock pipeline, resident, where there is room for it; else the plainest
    placement that there is room for, which the runner makes. Raises UserError where there is none."""
    config = _alone(config)
    try:
        return _stock(config, directory, device, lora)
    except NoRoom:
        pass
    refused: UserError | None = None
    for rest in (Rest.host, Rest.disk):
        placed = replace(config, placement={"default": PlacementConfig(rest=rest)})
        try:
            pipeline = open_pipeline(placed, World(0, 1, device), directory)
            return Plain(pipeline.stock, f"the runner on one rank, rest={rest.value}", pipeline)
        except UserError as error:
            refused = error
    assert refused is not None
    raise refused


def _alone(config: RunConfig) -> RunConfig:
    """Without what only the runner does."""
    execution = ExecutionConfig(tf32=config.execution.tf32)
    return replace(config, placement={"default": PlacementConfig()}, mesh=MeshConfig(), execution=execution)


def _stock(config: RunConfig, directory: Directory, device: torch.device, lora: Strengths) -> Plain:
    dtype = getattr(torch, config.model.dtype.value)
    if _needs_the_runner(config.lora, directory.pipeline, lora):
        pipeline = open_pipeline(config, World(0, 1, device), directory)
        return Plain(pipeline.stock, "resident; its adapters by the runner", pipeline)
    with normal_mode():
        stock = _put_together(directory, dtype, device)
        if lora:
            _apply(stock, config.lora, lora)
    arguments = arguments_of(directory.pipeline)

    def make(request: Request) -> Any:
        with torch.inference_mode():
            inputs = decoded(request.call, device)
            set_global_generators(request.seed, device)
            return stock(
                **arguments.of_prompt(request.prompt),
                **inputs,
                generator=torch.Generator("cpu").manual_seed(request.seed),
                output_type=request.output_type,
            )

    return Plain(stock, "the stock pipeline, resident", make)


def _put_together(directory: Directory, dtype: torch.dtype, device: torch.device) -> Any:
    """Each part by its library's `from_pretrained`. Raises NoRoom where they do not fit together."""
    modules = {name: source for name, source in directory.sources.items() if source.is_module}
    of = {name: getattr(torch, source.changes.dtype or "", dtype) for name, source in modules.items()}
    weightless = nn.ModuleDict({name: empty(source, of[name]) for name, source in modules.items()})
    require_room_whole(weightless, device, 1, "the stock pipeline")
    given = {}
    for name, source in directory.sources.items():
        if name not in modules:
            given[name] = from_pretrained(source)
            continue
        given[name] = load_whole(source, of[name])
        set_on(given[name], source.changes)
    stock = directory.pipeline(**directory.settings, **given)
    stock.set_progress_bar_config(disable=True)
    return stock.to(device)


def _needs_the_runner(config: LoraConfig, cls: type[DiffusionPipeline], lora: Strengths) -> bool:
    """Whether diffusers has no way to apply these adapters to this pipeline, as they are configured."""
    if not lora:
        return False
    chosen = [one for one in config.adapters if adapter_name(one) in lora]
    return not hasattr(cls, "load_lora_weights") or any(one.components for one in chosen)


def _apply(stock: Any, config: LoraConfig, lora: Strengths) -> None:
    adapters = {adapter_name(one): Path(one.path) for one in config.adapters}
    for name in lora:
        path = adapters[name]
        load = partial(stock.load_lora_weights, adapter_name=name, local_files_only=True)
        load(path) if path.is_dir() else load(path.parent, weight_name=path.name)
    stock.set_adapters(list(lora), list(lora.values()))
    if config.mode is LoraMode.merge:
        for module in stock.components.values():
            for layer in module.modules() if isinstance(module, nn.Module) else ():
                if isinstance(layer, BaseTunerLayer):
                    layer.merge()
