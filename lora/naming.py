"""Which tensor of a file is for which layer of which component: as diffusers converts the file, else as its keys say.

A pipeline's own loader hands every file to `lora_state_dict` of the pipeline's class, so that comes first, for the bits
that stock gives. It recognises formats by words in the keys and is not strict: of what it does not expect it raises, or
renames it to nothing, or leaves it out without a word. So its reading counts where it accounts for every tensor, and
every layer is there; else the reading by the keys does, if that accounts for more.

What a loader does with the result is not followed where it would drop a part: of a file that names `text_encoder_2`,
Flux's loads nothing into it, and we do.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from torch import nn
from transformers import PreTrainedModel

from lora.adapter_file import PEFT_PREFIX, Tensors, is_alpha
from lora.checking import layer_of
from lora.origins import Origins, origins_of

_PEFTS, _DIFFUSERS, _KOHYAS = "peft's names", "diffusers' names", "kohya's names"
_ORIGINAL = "a trainer's or the original model's names"
_KOHYA = re.compile(r"lora_(unet|transformer|te\d*)_")
OF_TEXT_ENCODER = re.compile(r"lora_te\d*_|text_encoders?\d*[._]")
_LAST_PART = re.compile(r"\.(lora_\w+(\.default)?\.weight|(lora\.)?(up|down)\.weight|alpha)$")


@dataclass(frozen=True)
class Reading:
    """An adapter's tensors by component, under peft's names there, and what was not placed.

    `parts`: an alpha may be a plain number. `strangers`: keys for which there is no component. `lost`: keys of the file
    that came to nothing, though they would change a picture. `ambiguous`: the components that fit alike.
    """

    read_as: str
    parts: dict[str, Tensors]
    strangers: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)

    def num_misfits(self, modules: Mapping[str, nn.Module]) -> int:
        """Tensors that are not placed, or placed where no layer is."""
        astray = sum(
            layer_of(modules[component], key) is None for component, part in self.parts.items() for key in part
        )
        return astray + len(self.strangers) + len(self.lost) + len(self.ambiguous)


def by_conversion(tensors: Tensors, modules: Mapping[str, nn.Module], pipeline_class: Any) -> Reading:
    """As the pipeline's own loader reads it. May scale the tensors in place, and raise whatever a converter raises."""
    with Origins(tensors) as origins:
        converted = pipeline_class.lora_state_dict(dict(tensors), return_alphas=True)
    state, alphas = converted[:2] if isinstance(converted, tuple) else (converted, None)
    # Loaders refuse an alpha that is still among the factors, or ignore it.
    used = {key: tensor for key, tensor in state.items() if not is_alpha(key)} | (alphas or {})
    accounted = origins_of(used.values()) | origins.as_numbers
    parts, strangers = _split(used, modules)
    named = {component: _peft_names(part, modules[component]) for component, part in parts.items()}
    lost = _with_effect([key for key in tensors if key not in accounted], tensors)
    lost += [f"{component}.{key}" for component, part in parts.items() for key in _overwritten(part, named[component])]
    read_as = _format_of(tensors, modules)
    if used.keys() != tensors.keys():
        read_as = f"{_KOHYAS if read_as == _KOHYAS else _ORIGINAL}, converted by diffusers"
    return Reading(read_as, named, list(strangers), lost)


def by_keys(tensors: Tensors, modules: Mapping[str, nn.Module], components: Sequence[str]) -> Reading:
    """As the keys say: each begins with a component's name, or all are names of one component's layers."""
    parts, strangers = _split(tensors, modules)
    ambiguous: list[str] = []
    read_as = _format_of(tensors, modules)
    if strangers and not parts:
        bare = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in strangers.items()}
        if fitting := _fitting(bare, modules):
            chosen = [name for name in fitting if name in components] or fitting
            ambiguous = chosen if len(chosen) > 1 and not components else []
            read_as = read_as if read_as == _PEFTS else f"names of {type(modules[chosen[0]]).__name__}"
            lost = _overwritten(strangers, bare)
            parts, strangers = {chosen[0]: bare}, {key: strangers[key] for key in lost}
    named = {component: _peft_names(part, modules[component]) for component, part in parts.items()}
    lost = [f"{component}.{key}" for component, part in parts.items() for key in _overwritten(part, named[component])]
    return Reading(read_as, named, list(strangers), lost, ambiguous)


def _format_of(keys: Iterable[str], modules: Mapping[str, nn.Module]) -> str:
    """Whose names the keys are, by how they begin."""
    if any(key.startswith(PEFT_PREFIX) for key in keys):
        return _PEFTS
    if any(map(_KOHYA.match, keys)):
        return _KOHYAS
    return _DIFFUSERS if any(key.partition(".")[0] in modules for key in keys) else _ORIGINAL


def asked_for(tensors: Tensors, components: Iterable[str], modules: Mapping[str, nn.Module]) -> Tensors:
    """Without what trainers name after text encoders, where only other components are asked for."""
    chosen = [modules[name] for name in components if name in modules]
    if not chosen or any(map(_is_text_encoder, chosen)):
        return tensors
    return {key: t for key, t in tensors.items() if key.partition(".")[0] in modules or not OF_TEXT_ENCODER.match(key)}


def _split(tensors: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> tuple[dict[str, Tensors], Tensors]:
    """Tensors by the component that their key begins with, and those that begin with none."""
    parts: dict[str, Tensors] = {}
    rest: Tensors = {}
    for key, tensor in tensors.items():
        component, _, inner = key.partition(".")
        if component in modules and layer_of(modules[component], key) is None:
            parts.setdefault(component, {})[inner] = tensor
        else:
            rest[key] = tensor
    return parts, rest


def _fitting(tensors: Tensors, modules: Mapping[str, nn.Module]) -> list[str]:
    """The components in which most of the keys' layers are, if there are any."""
    hits = {name: sum(layer_of(module, key) is not None for key in tensors) for name, module in modules.items()}
    return [name for name, count in hits.items() if count and count == max(hits.values())]


def _peft_names(part: Tensors, module: nn.Module) -> Tensors:
    """Old names (`to_q.lora.down.weight`, `q_proj.lora_linear_layer.up.weight`) as peft's, by diffusers' own tables."""
    if _is_text_encoder(module) and any("to_out_lora" in key or "lora_linear_layer" in key for key in part):
        part = convert_state_dict_to_peft(convert_state_dict_to_diffusers(part))
    elif any(re.search(r"lora\.(down|up)\.", key) for key in part):
        part = convert_unet_state_dict_to_peft(part)
    if not hasattr(module, "text_model"):  # which transformers 5 took out of CLIP's names
        part = {key.removeprefix("text_model."): tensor for key, tensor in part.items()}
    return part


def _is_text_encoder(module: nn.Module) -> bool:
    return isinstance(module, PreTrainedModel)


def _overwritten(before: Tensors, after: Tensors) -> list[str]:
    """Keys whose tensor is gone, because another was given the same new name."""
    there = set(map(id, after.values()))
    return [key for key, tensor in before.items() if id(tensor) not in there]


def _with_effect(keys: Sequence[str], tensors: Tensors) -> list[str]:
    """Without those of layers with a factor of zeros: converters leave such out, and nothing changes."""
    factors = {key: tensor for key, tensor in tensors.items() if keys and not is_alpha(key)}
    zeros = {_LAST_PART.sub("", key) for key, tensor in factors.items() if not tensor.any()}
    return [key for key in keys if _LAST_PART.sub("", key) not in zeros]
