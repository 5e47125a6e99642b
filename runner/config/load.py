"""Settings are merged: defaults <- YAML files <- key=value, checked by OmegaConf's structured configs."""

from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

from runner.config.check import check_values
from runner.config.keys import refuse_key
from runner.config.schema import AUTO, KNOBS, OWN_KEYS, RunConfig
from runner.errors import UserError
from runner.reading.layers import escaped, mapped, merge
from runner.reading.plain_yaml import NotYaml, dump, read
from runner.reading.schema import annotation_of, is_text, leaves
from runner.reading.text_file import read_text
from runner.reading.values import check_value, shown
from runner.reading.words import value_of

LARGEST_FILE = 1 << 20  # bytes of a config file
_WHOLE = ("mesh", "placement")  # sections for which `auto` may stand
_KIND = {"share": "replicate", "rest": "device"}  # of a placement that does not say


def load_config(file: Path | None, words: Sequence[str], over: Sequence[Path] = ()) -> RunConfig:
    """Merge defaults, the YAML file, those laid `over` it (what changes from machine to machine) and the `key=value`
    words, whose values runner/reading/words.py explains.

    In a file ${key} stands for another key's value, and \\${ for a ${ of the text; in words a ${ is a ${.
    Raises UserError: an unreadable file, an unknown key (with the nearest right one), a value that cannot be.
    """
    files = [] if file is None else [file, *over]
    layers = _chosen([{}, *map(_read_file, files), *map(_read_word, words)])
    config = merge(RunConfig, layers, {"placement": _inherited})
    check_values(config, to_dict(config))
    return config


def _chosen(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`placement: auto` is short for that of every component, whatever the layers before said of any."""
    for index, layer in enumerate(layers):
        if layer.get("placement") == AUTO:
            before = [{name: section for name, section in one.items() if name != "placement"} for one in layers[:index]]
            layers = [*before, {**layer, "placement": {"default": {"rest": AUTO}}}, *layers[index + 1 :]]
    return layers


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration in plain values, each text as it was typed."""
    return asdict(mapped(config, lambda value: value.name if isinstance(value, Enum) else value))


def to_yaml(config: RunConfig) -> str:
    """The merged configuration, as a YAML file that load_config reads back as the same."""
    return dump(mapped(to_dict(config), escaped))


def _read_file(file: Path) -> dict[str, Any]:
    try:
        layer = read(read_text(file, "config file", LARGEST_FILE))
    except NotYaml as error:
        raise UserError(f"{file}:{error.line}: {error}") from error
    if not isinstance(layer, dict | None):
        raise UserError(f"config file {file} is {shown(layer)}, and no mapping of sections such as model: and job:")
    try:
        # A section whose keys are all commented out says nothing.
        return _checked({name: section for name, section in (layer or {}).items() if section is not None})
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _read_word(word: str) -> dict[str, Any]:
    key, equals, typed = word.partition("=")
    if not equals or not key:
        raise UserError(f"{shown(word)} is not key=value, for example job.seed=7")
    if key in _WHOLE and typed.strip() == AUTO:
        return _checked({key: AUTO})
    section, *names = key.split(".")
    if section == "components" and len(names) == 2 and names[1] not in OWN_KEYS:
        key = f"{section}.{names[0]}.settings.{names[1]}"
    annotation = annotation_of(RunConfig, key)
    if annotation is None:
        refuse_key(key)
    layer: Any = mapped(value_of(key, typed, annotation), escaped)
    for name in reversed(key.split(".")):
        layer = {name: layer}
    return _checked(layer)


def _checked(layer: dict[str, Any]) -> dict[str, Any]:
    """The layer, with the short forms of `lora`, of `mesh` and of a component's settings written out.

    Raises UserError: an unknown key, a value that no key takes, a text that YAML reads as something else.
    """
    lora = layer.get("lora")
    for adapter in lora if isinstance(lora, list) else [lora]:
        if isinstance(adapter, str):
            raise UserError(f"lora: {shown(adapter)} is no adapter; each is a mapping, {{path: {adapter}}}")
    if isinstance(lora, list):
        layer = {**layer, "lora": {"adapters": lora}}
    if layer.get("mesh") == AUTO:
        layer = {**layer, "mesh": {"guidance": AUTO, "context": AUTO}}
    if isinstance(components := layer.get("components"), dict):
        layer = {**layer, "components": {name: _settings_apart(one) for name, one in components.items()}}
    for key, annotation, value in leaves(RunConfig, layer):
        if annotation is None:
            refuse_key(key)
        check_value(value, key)  # and once more after merging, which resolves references
        if is_text(annotation) and isinstance(value, bool | float):
            raise UserError(f"{key} is a text, which YAML reads as {value}; put it in quotes")
    return layer


def _settings_apart(component: Any) -> Any:
    """`flow_shift: 3` of a scheduler is short for `settings: {flow_shift: 3}`. Its class knows which there are."""
    if not isinstance(component, dict):
        return component
    settings = {name: value for name, value in component.items() if name not in OWN_KEYS}
    own = {name: value for name, value in component.items() if name in OWN_KEYS}
    written = own.get("settings", {})
    return {**own, "settings": {**written, **settings}} if settings and isinstance(written, dict) else own


def _inherited(placement: dict[str, Any]) -> dict[str, Any]:
    """What a component's placement does not say comes from placement.default, as far as its kind has such an option."""
    default = placement.get("default") or {}
    merged = {}
    for name, own in placement.items():
        kind = [str((own or {}).get(key, default.get(key, "")) or first) for key, first in _KIND.items()]
        options = (*_KIND, *KNOBS.get((kind[0], kind[1]), ()))
        merged[name] = {**{key: value for key, value in default.items() if key in options}, **(own or {})}
    return {**merged, **({"default": default} if "default" in placement else {})}
