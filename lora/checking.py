"""Pairs an adapter's tensors with the layers they change, and finds everything that does not fit."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import nn

from lora.adapter import LowRank, few

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
# peft's settings under which factors mean something else than a change of their layer's weight.
_OTHER_MEANINGS = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "fan_in_fan_out",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "alora_invocation_tokens",
)
# With these peft leaves the base as it is; with the rest (pissa, ...) the factors belong to a changed one.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


def unsupported_parts(keys: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """A line for each kind of tensor, or setting, that is more than LoRA."""
    problems = []
    for kind, pattern in _UNSUPPORTED.items():
        if found := sorted(key for key in keys if pattern.search(key)):
            problems.append(f"{kind} parts are not supported: {few(found)}")
    for key, value in config.items():
        name = key.rpartition(".")[2]  # diffusers stores settings under component names: "transformer.use_dora"
        if (
            (name in _OTHER_MEANINGS and value)
            or (name == "bias" and value != "none")
            or (name == "init_lora_weights" and value not in _INITS)
            or (name == "peft_type" and value != "LORA")
        ):
            problems.append(f"its settings say {key}={value}, which is not supported")
    return problems


def layer_of(module: nn.Module, key: str) -> nn.Module | None:
    """The layer that a factor's or an alpha's key names; None where there is none."""
    match = _FACTOR.fullmatch(key) or _ALPHA.fullmatch(key)
    return _submodule(module, match["layer"]) if match else None


def check_component(
    tensors: Mapping[str, torch.Tensor], module: nn.Module, config: Mapping[str, Any]
) -> tuple[dict[str, LowRank], list[str]]:
    """Every weight's change by its name, and a line for each kind of thing that is wrong."""
    sides: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    alphas: dict[str, float] = {}
    problems: dict[str, list[str]] = defaultdict(list)
    for key, tensor in tensors.items():
        if match := _FACTOR.fullmatch(key):
            sides[match["layer"]][_SIDES[match["side"]]] = tensor
        elif (match := _ALPHA.fullmatch(key)) and _is_number(tensor):
            alphas[match["layer"]] = float(tensor)
        else:
            problems["are no LoRA factors"].append(key)
    problems["are alphas without factors"] = sorted(set(alphas) - set(sides))
    shared = _shared_weights(module)
    changes = {}
    for layer, factors in sides.items():
        problem = _problem(layer, factors, module, shared, config)
        if problem:
            problems[problem].append(layer)
        else:
            changes[f"{layer}.weight"] = _change(layer, factors, alphas, config)
    return changes, [f"{len(keys)} {problem}: {few(sorted(keys))}" for problem, keys in problems.items() if keys]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def _change(
    layer: str, factors: Mapping[str, torch.Tensor], alphas: Mapping[str, float], config: Mapping[str, Any]
) -> LowRank:
    """Alpha as stored for the layer, else as the settings say, else such that the factors count as they are."""
    rank = factors["down"].shape[0]
    stabilised = bool(config.get("use_rslora"))
    if layer in alphas:
        alpha = alphas[layer]
    elif "lora_alpha" in config:
        alpha = _by_pattern(config.get("alpha_pattern"), layer, config["lora_alpha"])
    else:
        alpha = rank
    return LowRank(factors["down"], factors["up"], float(alpha), stabilised)


def _problem(
    name: str,
    factors: Mapping[str, torch.Tensor],
    module: nn.Module,
    shared: frozenset[str],
    config: Mapping[str, Any],
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
    if not (down.is_floating_point() and up.is_floating_point() and down.isfinite().all() and up.isfinite().all()):
        return "have factors with values that are no finite numbers"
    rank = _by_pattern(config.get("rank_pattern"), name, config.get("r"))
    if rank not in (None, down.shape[0]):
        return f"have factors of rank {down.shape[0]} where the settings say {rank}"
    return None


def _by_pattern(patterns: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """The setting of the first pattern that the layer's name ends with, as peft matches them."""
    patterns = patterns or {}
    return patterns.get(get_pattern_key(list(patterns), layer), default)


def _submodule(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


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
