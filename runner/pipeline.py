"""Opens a diffusers directory and calls its own, unmodified pipeline."""

import difflib
import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from tqdm import tqdm

import sharding
from runner.adapters import Adapters, open_adapters
from runner.boundaries import Timings, boundaries
from runner.checkpoint import check_weights, read_index
from runner.component import Component, components_of
from runner.config import Leave, LoraConfig, RunConfig
from runner.distributed import World
from runner.errors import UserError
from runner.execution import Decision, ExecutionMode, enter, resolve
from runner.lockstep import Lockstep
from runner.placement import Loading, build_groups, check_placement, from_pretrained, load_component, placement_of

NO_ADAPTERS: Mapping[str, float] = MappingProxyType({})
# The runner sets these for each request.
OWN_ARGUMENTS = {
    "generator": "job.seed",
    "output_type": "job.format",
    "num_images_per_prompt": "job.images_per_prompt",
    "num_videos_per_prompt": "job.images_per_prompt",
    "return_dict": None,
    "prompt": "job.prompt",
    "class_labels": "job.prompt",
}


class Pipeline:
    """A stock pipeline whose components are placed, and whose calls run each component in the mode decided for it."""

    def __init__(
        self, stock: Any, world: World, leave: Leave = Leave.component, loadings: Mapping[str, Loading] | None = None
    ) -> None:
        self.stock = stock
        self.world = world
        self.loadings = dict(loadings or {})
        self.timings = Timings()
        self.adapters = Adapters(LoraConfig(), {}, {})
        self.components: list[Component] = components_of(stock)
        self.decisions: dict[str, Decision] = resolve(self.components, leave)
        self.lockstep = Lockstep(world if any(component.is_sharded for component in self.components) else None)
        self.arguments = _arguments(type(stock))
        self.prompt_argument = "prompt" if "prompt" in self.arguments else self.arguments[0]

    def check_arguments(self, call: Mapping[str, Any], where: str = "job.call") -> None:
        """Refuse what the pipeline's own signature does not take, or what the runner sets."""
        check_arguments(type(self.stock), call, where)

    def check_prompt(self, prompt: str | int, where: str) -> None:
        """Text for a pipeline that takes a prompt, a whole number for one that takes class labels."""
        if self.prompt_argument == "prompt" and not isinstance(prompt, str):
            raise UserError(f"{where}: {type(self.stock).__name__} takes text, not {prompt!r}; quote it")
        if self.prompt_argument != "prompt" and not isinstance(prompt, int):
            raise UserError(f"{where}: {type(self.stock).__name__} takes a class label (a number), not {prompt!r}")

    def __call__(
        self,
        prompt: str | int,
        seed: int,
        call: Mapping[str, Any],
        output_type: str,
        lora: Mapping[str, float] = NO_ADAPTERS,
    ) -> Any:
        """One picture or clip: the first element of the pipeline's first output, with the adapters of `lora` active.

        The noise comes from a CPU generator of the request's own, so that no other request, rank or device moves it.
        Where a component is sharded, all ranks call together, with calls that are alike; PeerLeft is raised on those
        whose request could not go on because another rank's failed.
        """
        self.timings.current = None  # a failure before the first component call is not the last request's
        device_type = self.world.device.type
        with (
            self.lockstep.request(),
            enter(ExecutionMode.INFERENCE, device_type),
            boundaries(self.components, self.decisions, device_type, self.timings, self.lockstep),
        ):
            self.adapters.set(lora)
            output = self.stock(
                **{self.prompt_argument: [prompt]},
                **call,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type=output_type,
            )
        return output[0][0]


def check_arguments(cls: type, call: Mapping[str, Any], where: str = "job.call") -> None:
    """Raises UserError for what the pipeline class's own signature does not take, or what the runner sets."""
    arguments = _arguments(cls)
    for name in call:
        if name in OWN_ARGUMENTS:
            instead = OWN_ARGUMENTS[name]
            raise UserError(
                f"{where}.{name} is set by the runner" + (f"; use {instead}" if instead else "; leave it out")
            )
        if name not in arguments:
            near = difflib.get_close_matches(name, arguments, n=1, cutoff=0.0)[0]
            raise UserError(f"{where}.{name}: {cls.__name__} takes no {name!r}; the nearest is {near!r}")


def _arguments(cls: Any) -> list[str]:
    parameters = inspect.signature(cls.__call__).parameters
    return [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD and name != "self"]


def open_pipeline(config: RunConfig, world: World, *, progress: bool = False) -> Pipeline:
    """Open the directory `model.path` and place each component as configured, in normal mode. Collective.

    Raises UserError on all ranks: not a diffusers directory, weights missing, pickled, damaged, extra or of the wrong
    shape, a placement or a mesh that cannot be.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("open_pipeline inside inference_mode would make every weight an inference tensor")
    root = Path(config.model.path)
    index, classes = world.agreed(lambda: _read_directory(root, config))
    modules = [name for name, cls in classes.items() if issubclass(cls, nn.Module)]
    groups = build_groups(config, modules, world)
    dtype = getattr(torch, config.model.dtype.value)
    parts: dict[str, Any] = {name: value for name, value in index.items() if not name.startswith("_")}
    loadings: dict[str, Loading] = {}
    for name in tqdm(index, desc="loading", unit="component", disable=not progress):
        if name in modules:
            placement = placement_of(name, config)
            parts[name], loadings[name] = load_component(classes[name], root / name, dtype, placement, world, groups)
        elif name in classes:
            parts[name] = world.agreed(partial(from_pretrained, classes[name], root / name))
        elif _is_component(index[name]):
            parts[name] = None
    if groups.mesh is not None and config.execution.leave_inference is Leave.weights:
        _verify_modes(groups.mesh)
    stock = _on_device(pipeline_class(root, index), world.device)(**parts)
    stock.set_progress_bar_config(disable=True)
    pipeline = Pipeline(stock, world, config.execution.leave_inference, loadings)
    pipeline.adapters = world.agreed(lambda: open_adapters(config.lora, pipeline.components, type(stock), world, root))
    return pipeline


def _read_directory(root: Path, config: RunConfig) -> tuple[dict[str, Any], dict[str, type]]:
    """model_index.json and the class of each component, checked together with the placements; nothing is loaded."""
    index = read_index(root)
    classes = _component_classes(root, index)
    modules = [name for name, cls in classes.items() if issubclass(cls, nn.Module)]
    for name in config.placement:
        if name != "default" and name not in modules:
            raise UserError(f"placement.{name}: the model has no such component; it has {', '.join(modules)}")
    for name in modules:
        check_placement(name, placement_of(name, config))
        check_weights(root / name)
    pipeline_class(root, index)
    return index, classes


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


def pipeline_class(root: Path, index: Mapping[str, Any]) -> Any:
    """The class that model_index.json names.

    Built from its parts rather than by `from_pretrained`: that one loads optional components (both DiTs of Wan) from
    disk even where they are passed in.
    """
    cls = getattr(diffusers, str(index.get("_class_name")), None)
    if not (isinstance(cls, type) and issubclass(cls, DiffusionPipeline)):
        raise UserError(f"{root / 'model_index.json'}: {index.get('_class_name')!r} is no pipeline of this diffusers")
    return cls


def _is_component(entry: Any) -> bool:
    """Components are [library, class] in model_index.json, [null, null] where there is none; the rest is settings."""
    return isinstance(entry, list) and len(entry) == 2 and all(part is None or isinstance(part, str) for part in entry)


def _component_classes(root: Path, index: Mapping[str, Any]) -> dict[str, type]:
    """The class of each component that the directory has, by name."""
    classes = {}
    for name, entry in index.items():
        if not _is_component(entry) or entry[0] is None:
            continue
        # A name from a file becomes a path, and a library from a file becomes an import: only known ones do.
        library = {"diffusers": diffusers, "transformers": transformers}.get(entry[0])
        library = library or getattr(diffusers.pipelines, entry[0], None)
        cls = getattr(library, entry[1], None)
        if not isinstance(cls, type) or Path(name).name != name:
            raise UserError(f"{root / 'model_index.json'}: {name} is a {entry[0]} {entry[1]}, which is not installed")
        classes[name] = cls
    return classes
