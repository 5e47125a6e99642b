"""What `components.<name>` changes of a component: checked before anything is loaded, and set on what is loaded."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, NoReturn

from diffusers import ConfigMixin, ModelMixin, SchedulerMixin
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    _check_attention_backend_requirements,
)
from torch import nn

from runner.components.modular import settings_of_made
from runner.components.reading import reading
from runner.components.source import Changes, Source
from runner.config import ComponentConfig
from runner.errors import UserError
from runner.reading.schema import nearest

_OF_MODELS = ("dtype", "variant", "attention", "tiling", "slicing")


def changed(source: Source, config: ComponentConfig) -> Source:
    """The component with what its keys change. Raises UserError for what it does not have."""
    if issubclass(source.cls, SchedulerMixin):
        return _changed_scheduler(source, config)
    if not source.is_module:
        _refuse(source, next(iter(_given(config)), None))
        return source
    if config.settings:
        name = next(iter(config.settings))
        known = [one.name for one in fields(ComponentConfig) if one.name != "settings"]
        raise UserError(
            f"components.{source.name}.{name}: a {source.cls.__name__} has no such setting; the nearest is "
            f"{nearest(name, known)!r}"
        )
    changes = Changes(
        dtype=None if config.dtype is None else config.dtype.value,
        attention=_attention(source, config.attention),
        tiling=_enabled(source, "tiling", config.tiling),
        slicing=_enabled(source, "slicing", config.slicing),
    )
    return replace(source, variant=config.variant or source.variant, changes=changes)


def changed_settings(pipeline: Any, name: str, config: ComponentConfig) -> dict[str, Any]:
    """What is changed of a component that a modular pipeline makes itself: of its settings, and nothing else."""
    if other := next((one for one in _given(config) if one in _OF_MODELS), None):
        kind = pipeline.made[name].type_hint.__name__
        raise UserError(f"components.{name}.{other}: a {kind} has no such setting")
    return settings_of_made(pipeline, name, config.settings)


def refuse_absent(pipeline: Any, sources: Mapping[str, Any], components: Mapping[str, ComponentConfig]) -> None:
    """Raises UserError where something is changed of a component that is not there, or is made by the constructor."""
    for name, config in components.items():
        if name not in sources and (given := _given(config)):
            raise UserError(
                f"components.{name}.{given[0]}: the model has no {name}, and a {pipeline.__name__} makes one or does "
                f"without; components.{name}.path=FOLDER gives it"
            )


def set_on(module: nn.Module, changes: Changes) -> None:
    """Set what can be set on a loaded model; no weight is touched."""
    model: Any = module
    if changes.attention is not None:
        before = _AttentionBackendRegistry.get_active_backend()[0]
        try:
            model.set_attention_backend(changes.attention)
        finally:
            _AttentionBackendRegistry.set_active_backend(before)  # of everything else in this process
    if changes.tiling is not None:
        model.enable_tiling(**changes.tiling)
    if changes.slicing is not None:
        model.enable_slicing(**changes.slicing)


def scheduler_of(stored: Any, cls: Any, settings: Mapping[str, Any]) -> Any:
    """The scheduler of a file as another class, with other settings."""
    return cls.from_config(stored.config, **settings)


def _given(config: ComponentConfig) -> list[str]:
    return [name for name in _OF_MODELS if getattr(config, name) is not None] + list(config.settings)


def _refuse(source: Source, name: str | None) -> None:
    if name is not None:
        raise UserError(f"components.{source.name}.{name}: a {source.cls.__name__} has no such setting")


def _changed_scheduler(source: Source, config: ComponentConfig) -> Source:
    _refuse(source, next((name for name in _given(config) if name in _OF_MODELS), None))
    if not config.settings:
        return source
    settings = dict(config.settings)
    cls = _exchange(source, settings.pop("class", source.cls.__name__))
    known = sorted(cls._get_init_keys(cls) - {"self", "kwargs"})
    for name in settings:
        if name not in known:
            _unknown_setting(source, cls, name, known)
    with reading(f"{source.folder} cannot be loaded as a {source.cls.__name__}"):
        stored = source.cls.from_pretrained(source.folder, local_files_only=True)
    with reading(f"components.{source.name}: a {cls.__name__} does not take these settings"):
        without = scheduler_of(stored, cls, {})
        scheduler_of(stored, cls, settings)
    has_effect = {name: value for name, value in settings.items() if without.config.get(name) != value}
    exchanged = None if cls is source.cls else source.cls
    return replace(source, cls=cls, changes=Changes(settings=has_effect, exchanged=exchanged))


def _exchange(source: Source, name: Any) -> Any:
    """The class of this name, of those that take the same configuration."""
    compatible = {one.__name__: one for one in source.cls._get_compatibles() if issubclass(one, ConfigMixin)}
    compatible[source.cls.__name__] = source.cls
    if name not in compatible:
        raise UserError(
            f"components.{source.name}.class: {name!r} does not take the configuration of a {source.cls.__name__}; "
            f"these do: {', '.join(sorted(compatible))}. Another scheduler with a configuration of its own comes by "
            f"components.{source.name}.path"
        )
    return compatible[name]


def _unknown_setting(source: Source, cls: Any, name: str, known: list[str]) -> NoReturn:
    near = nearest(name, known)
    raise UserError(f"components.{source.name}.{name}: a {cls.__name__} has no such setting; the nearest is {near!r}")


def _attention(source: Source, name: str | None) -> str | None:
    """The backend, None for the one that is active anyhow."""
    if name is None:
        return None
    key = f"components.{source.name}.attention"
    backends = {one.value for one in AttentionBackendName}
    if name not in backends:
        there = ", ".join(sorted(one for one in backends if _why_not(one) is None))
        raise UserError(f"{key}: diffusers has no attention backend {name!r}; installed are {there}")
    if (why := _why_not(name)) is not None:
        raise UserError(f"{key}: {why}")
    if not issubclass(source.cls, ModelMixin) or "_attention_backend" not in _code_of(source.cls):
        raise UserError(f"{key}: a {source.cls.__name__} does not choose its attention by diffusers' backends")
    return None if name == _AttentionBackendRegistry.get_active_backend()[0].value else name


def _why_not(name: str) -> str | None:
    """Why an attention backend cannot be used here, None where it can."""
    if name.endswith("_hub"):
        return f"{name} is code that is fetched from a hub, and nothing is fetched here"
    try:
        _check_attention_backend_requirements(AttentionBackendName(name))
    except RuntimeError as error:
        return str(error)
    return None


def _code_of(cls: type) -> str:
    modules = {one.__module__ for one in cls.__mro__ if one.__module__.startswith("diffusers.models.")}
    return "".join(inspect.getsource(sys.modules[name]) for name in modules)


def _enabled(source: Source, what: str, asked: Any) -> Mapping[str, Any] | None:
    """The arguments that tiling or slicing is enabled with, None where it is not."""
    key = f"components.{source.name}.{what}"
    if asked is None or asked is False:
        return None
    if asked is not True and not isinstance(asked, dict):
        raise UserError(f"{key} is {asked!r}; it must be true, false, or a mapping of its settings")
    enable = getattr(source.cls, f"enable_{what}", None)
    # diffusers gives the method to every autoencoder, also to those that raise in it.
    if enable is None or f"use_{what}" not in _code_of_constructors(source.cls):
        raise UserError(f"{key}: a {source.cls.__name__} has no {what}")
    known = [name for name in inspect.signature(enable).parameters if name != "self"]
    settings = {} if asked is True else asked
    for name in settings:
        if name not in known:
            near = f"; the nearest is {nearest(name, known)!r}" if known else "; it has none, set it to true"
            raise UserError(f"{key}.{name}: a {source.cls.__name__} has no such setting{near}")
    return settings


def _code_of_constructors(cls: type) -> str:
    own = [one for one in cls.__mro__ if "__init__" in vars(one) and one.__module__.startswith("diffusers.models.")]
    return "".join(inspect.getsource(vars(one)["__init__"]) for one in own)
