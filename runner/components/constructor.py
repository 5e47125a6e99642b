"""What a pipeline's constructor takes, by the rules of `from_pretrained`: settings, components, and what is left out.

The pipeline is put together from its components, and not by `from_pretrained`: that one loads optional components
(both DiTs of Wan) from disk even where they are passed in.
"""

import inspect
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import ModelMixin
from diffusers.models.autoencoders.vae import AutoencoderMixin
from torch import nn

from runner.components.needs import does_without
from runner.errors import UserError

Entry = tuple[str, str]  # [library, class], as a model_index.json lists a component


@dataclass(frozen=True)
class Arguments:
    """`listed`: components that the directory has; `settings`: the constructor's other arguments, None for a component
    that is not there; `left_out`: what the directory lists and the class does not take."""

    listed: Mapping[str, Entry]
    settings: Mapping[str, Any]
    left_out: tuple[str, ...]


def parameters_of(cls: Any) -> dict[str, inspect.Parameter]:
    """The constructor's named parameters."""
    found = {name: one for name, one in inspect.signature(cls.__init__).parameters.items() if name != "self"}
    return {name: one for name, one in found.items() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}


def component_names(cls: Any) -> list[str]:
    """The parameters that are components: those without a default, and those that the class calls optional."""
    return list(cls._get_signature_keys(cls)[0])


def told_apart(index_file: Any, cls: Any, index: Mapping[str, Any], given: Collection[str] = ()) -> Arguments:
    """The arguments that an index has for the class. Components that are `given` come from elsewhere.

    Raises UserError for a component that is missing, null without being optional, or none at all.
    """
    settings: dict[str, Any] = {}
    listed: dict[str, Entry] = {}
    for name, one in parameters_of(cls).items():
        optional, needed = name in cls._optional_components, one.default is inspect.Parameter.empty
        if name in given:
            continue
        if name not in index:
            if needed and not optional:
                fix = f"components.{name}.path=FOLDER gives it"
                raise UserError(f"{index_file} lists no {name}, which a {cls.__name__} needs; {fix}")
            if needed:
                settings[name] = None
        elif not needed and not optional:
            settings[name] = index[name]  # and be it a component: LongCatAudioDiT's constructor makes its scheduler
        elif index[name] in (None, [None, None]):
            if not optional and needed and not does_without(cls, name):
                raise UserError(f"{index_file}: {name} is null, and a {cls.__name__} does not work without")
            settings[name] = None
        elif (entry := as_entry(index[name])) is not None:
            listed[name] = entry
        else:
            raise UserError(f"{index_file}: {name} is {index[name]!r:.80}; a component is [library, class]")
    there = [name for name, value in index.items() if not name.startswith("_") and value not in (None, [None, None])]
    unknown = [name for name in there if name not in parameters_of(cls)]
    return Arguments(listed, settings, tuple(unknown))


def takes(cls: Any, name: str, part: type, *, strict: bool = False) -> bool:
    """Whether the constructor's annotation has room for a component of this class.

    Unless `strict`, autoencoders stand in for each other: a tiny one decodes for any that makes the same latents. Of
    schedulers, tokenizers and processors annotations say too little, and nobody asks them.
    """
    annotated = types_of(cls, name)
    if not annotated or not issubclass(part, nn.Module):
        return True
    if issubclass(part, annotated):
        return True
    alike = issubclass(part, AutoencoderMixin) and any(issubclass(one, AutoencoderMixin) for one in annotated)
    return alike and not strict


def types_of(cls: Any, name: str) -> tuple[type, ...]:
    """The classes that a parameter is annotated with; none where the annotation does not tell."""
    if not hasattr(cls, "_get_signature_types"):  # a modular pipeline
        return ()
    annotated = cls._get_signature_types().get(name, ())
    if typing.Any in annotated:
        return ()
    return tuple(one for one in annotated if isinstance(one, type) and one not in (inspect.Signature.empty, type(None)))


def fits(cls: Any, classes: Mapping[str, type]) -> list[str] | None:
    """The components that the class wants beside these; None where it has no use for the models among them."""
    if not all(takes(cls, name, part, strict=True) for name, part in classes.items() if name in parameters_of(cls)):
        return None
    models = {name for name, part in classes.items() if issubclass(part, ModelMixin)}
    if not models <= parameters_of(cls).keys():
        return None
    needed = set(component_names(cls)) - set(cls._optional_components)
    return sorted(needed - classes.keys())


def as_entry(value: Any) -> Entry | None:
    """[library, class], None for what is none."""
    is_one = isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)
    return (value[0], value[1]) if is_one else None
