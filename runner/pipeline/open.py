"""Opens a diffusers directory: each component loaded and placed, and the stock pipeline put together from them."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from tqdm import tqdm

import sharding
from runner.components.directory import check_placements, read_directory
from runner.components.load import Loading, build_groups, from_pretrained, load_component, placement_of
from runner.components.reading import reading
from runner.config import Leave, RunConfig
from runner.errors import UserError
from runner.pipeline.adapters import open_adapters
from runner.pipeline.pipeline import Pipeline
from runner.progress import Progress
from runner.world import World


def open_pipeline(
    config: RunConfig, world: World, *, progress: Progress | None = None, show_bar: bool = False
) -> Pipeline:
    """Open the directory `model.path` and place each component as configured, in normal mode. Collective.

    Raises UserError on all ranks: not a diffusers directory, weights missing, pickled, damaged or of the wrong shape, a
    placement or a mesh that cannot be.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("open_pipeline inside inference_mode would make every weight an inference tensor")
    root = Path(config.model.path)
    directory = world.agreed(lambda: read_directory(root))
    world.agreed(lambda: check_placements(directory, config))
    groups = build_groups(config, directory.modules, world)
    dtype = getattr(torch, config.model.dtype.value)
    parts: dict[str, Any] = dict(directory.settings)
    loadings: dict[str, Loading] = {}
    # What has no weights comes first: a tokenizer that cannot be made is found before minutes of loading.
    weights_last = sorted(directory.classes.items(), key=lambda item: issubclass(item[1], nn.Module))
    for name, cls in tqdm(weights_last, desc="loading", unit="component", disable=not show_bar):
        folder = directory.folder(name)
        if issubclass(cls, nn.Module):
            placement = placement_of(name, config)
            parts[name], loadings[name] = load_component(cls, folder, dtype, placement, world, groups)
        else:
            parts[name] = world.agreed(partial(from_pretrained, cls, folder))
    if groups.mesh is not None and config.execution.leave_inference is Leave.weights:
        _verify_modes(groups.mesh)
    with reading(f"{root} does not make a {directory.pipeline.__name__}"):
        stock = _on_device(directory.pipeline, world.device)(**parts)
    stock.set_progress_bar_config(disable=True)
    leave = config.execution.leave_inference
    pipeline = Pipeline(stock, world, leave, loadings=loadings, groups=groups, progress=progress)
    pipeline.adapters = world.agreed(lambda: open_adapters(config.lora, pipeline.components, type(stock), world, root))
    return pipeline


def _verify_modes(mesh: DeviceMesh) -> None:
    try:
        sharding.verify_mixed_modes(mesh)
    except sharding.MixedModesUnsafe as error:
        raise UserError(
            f"execution.leave_inference=weights is not safe here: {error}; use execution.leave_inference=component"
        ) from error


def _on_device(cls: Any, device: torch.device) -> Any:
    """The pipeline's class, told where it computes: it guesses from the first component's weights, which may rest on
    the host. The name stays, for the messages and for what the pipeline looks up by it."""
    here = property(lambda self: device)
    return type(cls.__name__, (cls,), {"device": here, "_execution_device": here, "__module__": cls.__module__})
