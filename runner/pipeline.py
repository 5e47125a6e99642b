"""Opens a diffusers directory and calls its own, unmodified pipeline."""

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn
from tqdm import tqdm

from runner.checkpoint import check_weights, read_index
from runner.component import Component, components_of
from runner.config import PlacementConfig, Rest, RunConfig, Share
from runner.errors import UserError
from runner.execution import Decision, ExecutionMode, Timings, boundaries, decide, enter

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

    def __init__(self, stock: Any, device: torch.device) -> None:
        self.stock = stock
        self.device = device
        self.timings = Timings()
        self.components: list[Component] = components_of(stock)
        self.decisions: dict[str, Decision] = {c.name: decide(c) for c in self.components}
        parameters = inspect.signature(type(stock).__call__).parameters
        self.arguments = [n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD and n != "self"]
        self.prompt_argument = "prompt" if "prompt" in self.arguments else self.arguments[0]

    def check_arguments(self, call: Mapping[str, Any], where: str = "job.call") -> None:
        """Refuse what the pipeline's own signature does not take, or what the runner sets."""
        for name in call:
            if name in OWN_ARGUMENTS:
                instead = OWN_ARGUMENTS[name]
                raise UserError(
                    f"{where}.{name} is set by the runner" + (f"; use {instead}" if instead else "; leave it out")
                )
            if name not in self.arguments:
                near = difflib.get_close_matches(name, self.arguments, n=1, cutoff=0.0)[0]
                raise UserError(
                    f"{where}.{name}: {type(self.stock).__name__} takes no {name!r}; the nearest is {near!r}"
                )

    def check_prompt(self, prompt: str | int, where: str) -> None:
        """Text for a pipeline that takes a prompt, a whole number for one that takes class labels."""
        if self.prompt_argument == "prompt" and not isinstance(prompt, str):
            raise UserError(f"{where}: {type(self.stock).__name__} takes text, not {prompt!r}; quote it")
        if self.prompt_argument != "prompt" and not isinstance(prompt, int):
            raise UserError(f"{where}: {type(self.stock).__name__} takes a class label (a number), not {prompt!r}")

    def __call__(self, prompt: str | int, seed: int, call: Mapping[str, Any], output_type: str) -> Any:
        """One picture or clip: the first element of the pipeline's first output.

        The noise comes from a CPU generator of the request's own, so that no other request, rank or device moves it.
        """
        self.timings.current = None  # a failure before the first component call is not the last request's
        with (
            boundaries(self.components, self.decisions, self.device, self.timings),
            enter(ExecutionMode.INFERENCE, self.device.type),
        ):
            output = self.stock(
                **{self.prompt_argument: [prompt]},
                **call,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type=output_type,
            )
        return output[0][0]


def open_pipeline(config: RunConfig, device: torch.device, *, progress: bool = False) -> Pipeline:
    """Open the directory `model.path`, with every weight whole on `device`, in normal mode.

    Raises UserError: not a diffusers directory, weights missing, pickled, damaged, extra or of the wrong shape, a
    placement that is not built.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("open_pipeline inside inference_mode would make every weight an inference tensor")
    root = Path(config.model.path)
    index = read_index(root)
    classes = _component_classes(root, index)
    modules = [name for name, cls in classes.items() if issubclass(cls, nn.Module)]
    for name in config.placement:
        if name != "default" and name not in modules:
            raise UserError(f"placement.{name}: the model has no such component; it has {', '.join(modules)}")
    for name in modules:
        _check_placement(name, config.placement.get(name, config.placement.get("default", PlacementConfig())))
        check_weights(root / name)
    dtype = getattr(torch, config.model.dtype.value)
    parts: dict[str, Any] = {name: value for name, value in index.items() if not name.startswith("_")}
    for name in tqdm(index, desc="loading", unit="component", disable=not progress):
        if name in modules:
            parts[name] = _load(classes[name], root / name, dtype).to(device)
        elif name in classes:
            parts[name] = _from_pretrained(classes[name], root / name)
        elif _is_component(index[name]):
            parts[name] = None
    stock = _pipeline_class(root, index)(**parts)
    stock.set_progress_bar_config(disable=True)
    return Pipeline(stock, device)


def _pipeline_class(root: Path, index: Mapping[str, Any]) -> Any:
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


def _from_pretrained(cls: Any, folder: Path, **kwargs: Any) -> Any:
    try:
        return cls.from_pretrained(folder, local_files_only=True, **kwargs)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"cannot load {folder}: {error}") from error


def _check_placement(name: str, placement: PlacementConfig) -> None:
    if placement.share is not Share.replicate or placement.rest is not Rest.device:
        raise UserError(
            f"placement.{name} is share={placement.share.value}, rest={placement.rest.value}, which is not built yet; "
            "use share=replicate, rest=device"
        )


def _load(cls: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """The component in allocator-aligned memory; every weight accounted for.

    Loaded weights are views of the mapped file at odd offsets, and CPU kernels pick their instructions by alignment,
    which moves the last bit. A copy per tensor gives the same bits in every placement.
    """
    module, info = _from_pretrained(cls, folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, info.get(problem, ()))):
            listed = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
            raise UserError(f"{folder}: {problem.replace('_', ' ')} in the weights: {listed}")
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()
    return module.eval()
