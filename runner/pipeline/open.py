"""Opens a diffusers directory: each component loaded and placed, and the stock pipeline put together from them."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from tqdm import tqdm

import sharding
from runner.components.borrowed import Loan, find_loans, give_own, owners_of
from runner.components.compiled import denoises, require_compiler
from runner.components.context_fit import check_context
from runner.components.directory import Directory, check_placements, directory_of
from runner.components.groups import Groups, build_groups, placement_of
from runner.components.load import Loading, load_component
from runner.components.reading import file_errors, reading
from runner.components.whole import from_pretrained, move_whole
from runner.config import Leave, RunConfig
from runner.errors import UserError
from runner.pipeline.adapters import open_adapters
from runner.pipeline.pipeline import Pipeline
from runner.progress import Progress
from runner.world import World


def open_pipeline(
    config: RunConfig,
    world: World,
    directory: Directory | None = None,
    *,
    progress: Progress | None = None,
    show_bar: bool = False,
) -> Pipeline:
    """Open the directory `model.path` (what was read of it already: `directory`), and place each component as
    configured, in normal mode. Collective.

    Raises UserError on all ranks: not a diffusers directory, weights missing, pickled, damaged or of the wrong shape, a
    placement or a mesh that cannot be.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("open_pipeline inside inference_mode would make every weight an inference tensor")
    if directory is None:
        directory = world.agreed(lambda: directory_of(config))
    world.agreed(lambda: check_placements(directory, config))
    if config.execution.compile:
        world.agreed(lambda: require_compiler(world.device))
    compiled = bool(config.execution.compile)
    world.agreed(lambda: check_context(directory, world.team.context, compiled=compiled))
    groups = build_groups(config, directory.modules, world)
    given, loadings = _load(directory, config, world, groups, show_bar)
    if groups.mesh is not None and config.execution.leave_inference is Leave.weights:
        _verify_modes(groups.mesh)
    owners = owners_of(_modules(given))
    with reading(f"{directory.root} does not make a {directory.pipeline.__name__}"):
        stock = on_device(directory.pipeline, world.device)(**directory.settings, **given)
    stock.set_progress_bar_config(disable=True)
    loadings |= _take_made(stock, given, world.device)
    dtype = getattr(torch, config.model.dtype.value)
    copied = world.agreed(lambda: _lend(_modules(stock.components), owners, directory, dtype, world.device))
    leave = config.execution.leave_inference
    pipeline = Pipeline(stock, world, leave, loadings=loadings, groups=groups, progress=progress)
    pipeline.adapters = world.agreed(
        lambda: open_adapters(config.lora, pipeline.components, type(stock), world, directory.sources, copied)
    )
    return pipeline


def _load(
    directory: Directory, config: RunConfig, world: World, groups: Groups, show_bar: bool
) -> tuple[dict[str, Any], dict[str, Loading]]:
    dtype = getattr(torch, config.model.dtype.value)
    loaded: dict[str, Any] = {}
    loadings: dict[str, Loading] = {}
    # What has no weights comes first: a tokenizer that cannot be made is found before minutes of loading.
    weights_last = sorted(directory.sources.values(), key=lambda source: source.is_module)
    for source in tqdm(weights_last, desc="loading", unit="component", disable=not show_bar):
        if source.is_module:
            placement = placement_of(source.name, config)
            if config.execution.compile and denoises(source.cls):
                source = replace(source, changes=replace(source.changes, compile=config.execution.compile))
            loaded[source.name], loadings[source.name] = load_component(source, dtype, placement, world, groups)
        else:
            loaded[source.name] = world.agreed(partial(from_pretrained, source))
    return loaded, loadings


def _take_made(stock: Any, given: Mapping[str, Any], device: torch.device) -> dict[str, Loading]:
    """Modules that the constructor made itself are components as well: on the device, in aligned memory; their dtype is
    the constructor's. Pipelines that it made inside compute where the outer one does."""
    made = {}
    for name, module in stock.components.items():
        if isinstance(module, nn.Module) and module is not given.get(name):
            move_whole(module, device)
            made[name] = Loading(f"made by {type(stock).__name__} itself", 0, 0.0)
    inside: list[Any] = [value for value in vars(stock).values() if isinstance(value, DiffusionPipeline)]
    for inner in inside:
        inner.__class__ = on_device(type(inner), device)
        inner.set_progress_bar_config(disable=True)
    return made


def _modules(components: Mapping[str, Any]) -> dict[str, nn.Module]:
    return {name: module for name, module in components.items() if isinstance(module, nn.Module)}


def _lend(
    modules: Mapping[str, nn.Module],
    owners: Mapping[int, tuple[str, str]],
    directory: Directory,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Loan]:
    """What the constructor put into a second component: those loans that were made copies."""
    loans = find_loans(modules, owners)
    with file_errors():
        return [one for one in loans if give_own(one, modules, directory.sources[one.lender], dtype, device)]


def _verify_modes(mesh: DeviceMesh) -> None:
    try:
        sharding.verify_mixed_modes(mesh)
    except sharding.MixedModesUnsafe as error:
        raise UserError(
            f"execution.leave_inference=weights is not safe here: {error}; use execution.leave_inference=component"
        ) from error


def on_device(cls: Any, device: torch.device) -> Any:
    """The pipeline's class, told where it computes: it guesses from the first component's weights, which may rest on
    the host. The name stays, for the messages and for what the pipeline looks up by it."""
    here = property(lambda self: device)
    return type(cls.__name__, (cls,), {"device": here, "_execution_device": here, "__module__": cls.__module__})
