"""Layers of a configuration, merged into dataclasses by OmegaConf, so that every text comes through as it was."""

import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError, OmegaConfBaseException

from runner.errors import UserError

T = TypeVar("T")


def merge(schema: type[T], layers: Sequence[dict[str, Any]], within: Mapping[str, Callable[[Any], Any]]) -> T:
    """An object of the schema: its defaults, and over them each layer. References (${key}) are resolved.

    `within` changes what the layers together say of a section, before the defaults are laid under it. Raises UserError.
    """
    try:
        given = typing.cast(DictConfig, OmegaConf.merge(*(OmegaConf.create(layer) for layer in layers)))
        if missing := sorted(OmegaConf.missing_keys(given)):  # ??? in a file: who uses the file has to say
            raise UserError(f"{missing[0]} has to be given: {missing[0]}=VALUE")
        for section, change in within.items():
            if isinstance(given.get(section), DictConfig):
                given[section] = change(OmegaConf.to_container(given[section]))
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
    except UserError:
        raise
    except OmegaConfBaseException as error:
        raise UserError(_said(error)) from error
    except Exception as error:
        # What a conversion raises over a value of the user's comes through as it is: OverflowError, RecursionError.
        raise UserError(f"the configuration cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
    # OmegaConf leaves a str of its own where it read an escaped ???.
    return mapped(typing.cast(T, made), lambda value: str(value) if isinstance(value, str) else value)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same structure of dataclasses, mappings and lists, with each of its leaves changed."""
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: mapped(getattr(value, field.name), change) for field in fields(value)})
    if isinstance(value, dict):
        return {name: mapped(item, change) for name, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    return change(value)


def escaped(value: Any) -> Any:
    """A text as OmegaConf has to be given it, to hand it back: it resolves ${, and takes ??? for a missing value.

    It halves the backslashes before a ${ (GrammarVisitor._unescape), and takes one from those before ???.
    """
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"\\*\?\?\?", value):
        return "\\" + value
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)


def _said(error: OmegaConfBaseException) -> str:
    where = f"{error.full_key}: " if error.full_key else ""
    said = str(error).partition("\n    full_key:")[0]
    is_reference = isinstance(error, GrammarParseError | InterpolationResolutionError)
    escape = "; in a config file, a text that holds ${ itself is written \\${" if is_reference else ""
    return f"{where}{said[:200]}{escape}"
