"""An adapter's settings, as peft writes them: what they make of rank and alpha, and what in them is not LoRA.

[Note: patterns] The keys of `alpha_pattern` and `rank_pattern` are regular expressions, which peft hands to `re.match`
with each layer's name. Such a key comes from a file, and Python's matcher has no bound: `(a+)+$` takes longer than the
job. What trainers write, and diffusers and peft themselves, are names of layers: letters, digits, dots, and an anchor.
Without repetition and without choices a match costs no more than the lengths of the two; so these are matched with
peft's own expression, and every other is refused by name. Nothing is lost but the brevity of a hand-written one. A time
limit would be worse: it would refuse on a slow machine what it takes on a fast one. `target_modules`, which may be an
expression too, is not evaluated at all: peft, given the factors, does not follow it either.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig

from lora.adapter import LONGEST_NAME, few

_FIELDS = {field.name: field for field in dataclasses.fields(LoraConfig)}
# Under these, factors mean something else than a change of their layer's weight; peft marks some of them itself.
_OTHER_MEANINGS = {
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "fan_in_fan_out",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "alora_invocation_tokens",
} | {name for name, field in _FIELDS.items() if field.metadata.get("is_lora_variant")}
# With these peft leaves the base as it is; with the rest (pissa, ...) the factors belong to a changed one.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
_NAME_PATTERN = re.compile(r"\^?(?:[\w-]|\\?\.)+\$?")  # see [Note: patterns]

Pattern = tuple[re.Pattern[str], float]


@dataclass(frozen=True)
class Settings:
    """Of one component's adapter. The default is none at all: the factors count as they are, whatever their rank."""

    rank: int | None = None
    alpha: float | None = None
    ranks: tuple[Pattern, ...] = ()
    alphas: tuple[Pattern, ...] = ()
    rank_stabilised: bool = False

    def rank_of(self, layer: str) -> float | None:
        return _first(self.ranks, layer, self.rank)

    def alpha_of(self, layer: str) -> float | None:
        return _first(self.alphas, layer, self.alpha)


def _first(patterns: tuple[Pattern, ...], layer: str, default: float | None) -> float | None:
    """The value of the first pattern that the layer's name ends with."""
    return next((value for pattern, value in patterns if pattern.match(layer)), default)


def unsupported_settings(config: Mapping[str, Any]) -> list[str]:
    """A line for each setting, of any component, under which the factors would not be those of LoRA."""
    problems = []
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


def settings_of(config: Mapping[str, Any], component: str, num_modules: int) -> tuple[Settings, list[str]]:
    """What the settings say for one component, and a line for each that they cannot say.

    What a component's settings leave out is as in peft. `num_modules`: in the component, which bounds the patterns.
    """
    config = _own(config, component)
    if not config:
        return Settings(), []
    given = {name: config.get(name, _FIELDS[name].default) for name in ("r", "lora_alpha", "use_rslora")}
    patterns = {name: config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    if problems := [*_wrong(config, given), *_wrong_patterns(patterns, num_modules)]:
        return Settings(), [f"its settings say {problem}" for problem in problems]
    ranks, alphas = (tuple(map(_compiled, pattern.items())) for pattern in patterns.values())
    return Settings(given["r"], float(given["lora_alpha"]), ranks, alphas, given["use_rslora"]), []


def _own(config: Mapping[str, Any], component: str) -> dict[str, Any]:
    """diffusers writes the settings of several components into one file, each key under a component's name."""
    own = {key.removeprefix(f"{component}."): value for key, value in config.items() if key.startswith(f"{component}.")}
    return own or {key: value for key, value in config.items() if "." not in key}


def _wrong(config: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    if not _is_rank(given["r"]):
        yield f"r={given['r']!r}, which is no rank (a whole number from 1 on)"
    if not is_finite(given["lora_alpha"]):
        yield f"lora_alpha={given['lora_alpha']!r}, which is no finite number"
    if not isinstance(given["use_rslora"], bool):
        yield f"use_rslora={given['use_rslora']!r}, which is neither true nor false"
    targets = config.get("target_modules")
    if not (targets is None or isinstance(targets, str) or _all_text(targets)):
        yield f"target_modules={targets!r}, which is no list of names"


def _wrong_patterns(patterns: Mapping[str, Any], num_modules: int) -> Iterator[str]:
    for name, pattern in patterns.items():
        is_value, kind = (_is_rank, "ranks") if name == "rank_pattern" else (is_finite, "finite numbers")
        if not isinstance(pattern, dict):
            yield f"{name}={pattern!r}, which is no object of names and {kind}"
        elif wrong := [key for key, value in pattern.items() if not is_value(value)]:
            yield f"{name} with values that are no {kind}: {few([f'{key}={pattern[key]!r}' for key in wrong])}"
        elif wrong := [key for key in pattern if len(key) > LONGEST_NAME or not _NAME_PATTERN.fullmatch(key)]:
            yield f"{name} with expressions that are no names of layers, which could take for ever: {few(wrong)}"
        elif len(pattern) > num_modules:
            yield f"{name} with {len(pattern)} names, where there are {num_modules} modules"


def _compiled(item: tuple[str, float]) -> Pattern:
    """As in peft's `get_pattern_key`, which compiles each pattern anew for each layer."""
    key, value = item
    return re.compile(rf"(.*\.)?({key})$"), value


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_finite(value: Any) -> bool:
    """A number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


def _all_text(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
