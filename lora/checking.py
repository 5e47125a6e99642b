"""Pairs an adapter's tensors with the layers they change, and finds everything that does not fit."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lora.adapter import LowRank, few
from lora.settings import Settings

_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<side>A|B|down|up)(\.default)?\.weight")
_ALPHA = re.compile(r"(?P<layer>.+?)(\.lora_\w+(\.weight)?)?\.alpha")
_SIDES = {"A": "down", "down": "down", "B": "up", "up": "up"}

# What trainers store besides low-rank factors; to leave any of it out would make another picture without a word.
_UNSUPPORTED = {
    "DoRA": re.compile(r"lora_magnitude_vector|dora_scale"),
    "bias": re.compile(r"\.diff_b$|\.lora_\w+(\.\w+)*\.bias$"),
    "full difference": re.compile(r"\.diff$"),
    "LoKr, LoHa, OFT or IA3": re.compile(r"lokr_|hada_|\.oft_|ia3_"),
    "embedding": re.compile(r"lora_embedding_"),
    "Tucker core": re.compile(r"lora_mid"),
}


def unsupported_parts(keys: Iterable[str]) -> list[str]:
    """A line for each kind of tensor that is more than LoRA."""
    problems = []
    for kind, pattern in _UNSUPPORTED.items():
        if found := sorted(key for key in keys if pattern.search(key)):
            problems.append(f"{kind} parts are not supported: {few(found)}")
    return problems


def layer_of(module: nn.Module, key: str) -> nn.Module | None:
    """The layer that a factor's or an alpha's key names; None where there is none."""
    match = _FACTOR.fullmatch(key) or _ALPHA.fullmatch(key)
    return _submodule(module, match["layer"]) if match else None


def check_component(
    tensors: Mapping[str, Any], module: nn.Module, settings: Settings
) -> tuple[dict[str, LowRank], list[str]]:
    """Every weight's change by its name, and a line for each kind of thing that is wrong.

    `tensors`: factors, and alphas, which may be plain numbers.
    """
    sides: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    alphas: dict[str, Any] = {}
    problems: dict[str, list[str]] = defaultdict(list)
    for key, tensor in tensors.items():
        if match := _FACTOR.fullmatch(key):
            side = _SIDES[match["side"]]
            if side in sides[match["layer"]]:
                problems[f"have two factors for one side ({side})"].append(match["layer"])
            sides[match["layer"]][side] = tensor
        elif (match := _ALPHA.fullmatch(key)) and _is_number(tensor):
            if match["layer"] in alphas:
                problems["have two alphas"].append(match["layer"])
            alphas[match["layer"]] = tensor
        else:
            problems["are no LoRA factors"].append(key)
    problems["are alphas without factors"] = sorted(set(alphas) - set(sides))
    for what, layers in _wrong_alphas(alphas, sides, module, settings):
        problems[what] += layers
    shared = _shared_weights(module)
    changes = {}
    for layer, factors in sides.items():
        problem = _problem(layer, factors, module, shared, settings)
        if problem:
            problems[problem].append(layer)
        else:
            changes[f"{layer}.weight"] = _change(layer, factors, alphas, settings)
    return changes, [f"{len(keys)} {problem}: {few(sorted(keys))}" for problem, keys in problems.items() if keys]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def _wrong_alphas(
    alphas: Mapping[str, Any], layers: Iterable[str], module: nn.Module, settings: Settings
) -> Iterator[tuple[str, list[str]]]:
    """Where the libraries would take another number for a layer's alpha than the one that is stored for it.

    Run with diffusers 0.42.1: Flux's loader gives layers that have none the alpha that it meets first in the file, its
    converter of kohya's files their rank, and the loader of SD3 raises. And Flux's makes patterns of the layers' names,
    which match the end of a name: `proj_out` is also `single_transformer_blocks.0.proj_out`. In a text encoder they are
    made of names that transformers 5 has no more, so that all its layers get the first alpha. We do not choose.
    """
    if not alphas:
        return
    if isinstance(module, PreTrainedModel) and len({float(alpha) for alpha in alphas.values()}) > 1:
        yield "have different alphas in a text encoder, which diffusers mixes up", sorted(alphas)
    yield "have no alpha, where others have one; give each layer its own", sorted(set(layers) - set(alphas))
    if settings.alpha is not None:
        yield "have an alpha stored, which the settings give too; keep one of them", sorted(alphas)
    taken = []
    for layer, alpha in alphas.items():
        words = layer.split(".")
        ends = (".".join(words[i:]) for i in range(1, len(words)))
        taken += [layer for end in ends if end in alphas and float(alphas[end]) != float(alpha)]
    yield "have another alpha than the layer whose name theirs ends with, which diffusers mixes up", taken


def _change(layer: str, factors: Mapping[str, torch.Tensor], alphas: Mapping[str, Any], settings: Settings) -> LowRank:
    """Alpha as stored for the layer, else as the settings say, else such that the factors count as they are.

    A stored one stays the tensor that it is: peft computes with it in its own precision.
    """
    rank = factors["down"].shape[0]
    alpha = alphas[layer].reshape(()) if isinstance(alphas.get(layer), torch.Tensor) else alphas.get(layer)
    if alpha is None:
        alpha = settings.alpha_of(layer)
    return LowRank(factors["down"], factors["up"], float(rank) if alpha is None else alpha, settings.rank_stabilised)


def _problem(
    name: str,
    factors: Mapping[str, torch.Tensor],
    module: nn.Module,
    shared: frozenset[str],
    settings: Settings,
) -> str | None:
    """What is wrong with one layer's factors, as the end of a sentence about layers."""
    layer = _submodule(module, name)
    if layer is None:
        return f"match nothing in {type(module).__name__}"
    shape = _weight_shape(layer)
    if shape is None:
        return "are neither linear layers nor plain convolutions"
    if f"{name}.weight" in shared:
        return "share their weight with another layer"
    if missing := {"down", "up"} - set(factors):
        return f"lack a factor ({', '.join(sorted(missing))})"
    down, up = factors["down"], factors["up"]
    if down.ndim != len(shape) or up.ndim != len(shape) or down.shape[0] != up.shape[1] or down.shape[0] < 1:
        return f"have factors of different ranks, such as {list(down.shape)} and {list(up.shape)}"
    if (up.shape[0], *down.shape[1:]) != shape or any(size != 1 for size in up.shape[2:]):
        return f"have factors of the wrong shape, such as {list(up.shape)} x {list(down.shape)} for {list(shape)}"
    if not (down.isfinite().all() and up.isfinite().all()):
        return "have factors with values that are no finite numbers"
    rank = settings.rank_of(name)
    if rank not in (None, down.shape[0]):
        return f"have factors of rank {down.shape[0]} where the settings say {rank}"
    return None


def _submodule(module: nn.Module, name: str) -> nn.Module | None:
    """Not by attributes, as `get_submodule` does: a file could name a property, and have it computed."""
    inner: nn.Module | None = module
    for word in name.split("."):
        inner = inner._modules.get(word) if inner is not None else None
    return inner


def _weight_shape(layer: nn.Module) -> tuple[int, ...] | None:
    """From the layer's own sizes, since the weight itself may be sharded, or away. None: no LoRA of this layer."""
    if isinstance(layer, nn.Linear):
        return (layer.out_features, layer.in_features)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups == 1:
        return (layer.out_channels, layer.in_channels, *layer.kernel_size)
    return None


def _shared_weights(module: nn.Module) -> frozenset[str]:
    """The names of parameters that have several: to change one layer would change another."""
    parameters = list(module.named_parameters(remove_duplicate=False))
    owners = Counter(id(parameter) for _, parameter in parameters)
    return frozenset(name for name, parameter in parameters if owners[id(parameter)] > 1)
