"""The keys of the configuration by name: all of them with their help, and what is said of one that does not exist."""

import difflib
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, NoReturn

from runner.config.schema import OF_A_COMPONENT, AdapterConfig, RunConfig
from runner.errors import UserError
from runner.reading.schema import annotation_of, nearest
from runner.reading.values import shown

# What diffusers has loaders for, and the runner has not: by a part of the key that one would look for.
_NOT_LOADED = {"ip_adapter": "adapters that take pictures", "textual_inversion": "textual inversions"}


def describe() -> Iterator[tuple[str, str, str]]:
    """Every key with its default and its one line of help."""
    for section in fields(RunConfig):
        schema: Any = OF_A_COMPONENT.get(section.name, section.type)
        prefix = f"{section.name}.<component>" if section.name in OF_A_COMPONENT else section.name
        yield from _described(prefix, schema)


def _described(prefix: str, schema: Any) -> Iterator[tuple[str, str, str]]:
    assert is_dataclass(schema)
    for option in fields(schema):
        key = f"{prefix}.{option.name}" + (".<argument>" if option.name == "call" else "")
        key = f"{prefix}.<setting>" if option.name == "settings" else key
        if is_dataclass(option.type):
            yield from _described(key, option.type)
        else:
            default = "" if option.default in (MISSING, None) else option.default
            yield key, str(default.value if isinstance(default, Enum) else default), option.metadata["help"]


def refuse_key(key: str) -> NoReturn:
    """Raises UserError that names the nearest key, or why there is none."""
    section, *names = key.split(".")
    for part, what in _NOT_LOADED.items():
        if part in key:
            raise UserError(f"unknown key {shown(key)}: {what} are not loaded; adapters that are, are under lora")
    if annotation_of(RunConfig, key) is not None:
        raise UserError(f"{key!r} is one name with dots in it; in a file, write {section}: and the rest below it")
    known = [known.replace("<component>", names[0] if len(names) > 1 else "default") for known, _, _ in describe()]
    if key.startswith("lora.adapters[") and names[-1:] == ["weight"]:
        raise UserError(
            f"unknown key {shown(key)}: how much of an adapter is added is its strength; write strength: 0.8"
        )
    known += [f"lora.adapters[0].{option.name}" for option in fields(AdapterConfig)]
    near, argument = nearest(key, known), ""
    if section == "job" and len(names) == 1 and not difflib.get_close_matches(key, [near], cutoff=0.85):
        argument = f"; an argument of the pipeline's own call is job.call.{names[0]}"
    raise UserError(f"unknown key {shown(key)}; the nearest is {near!r}{argument} (--help lists them all)")
