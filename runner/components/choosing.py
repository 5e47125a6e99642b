"""Another pipeline over a directory's components (model.pipeline): which class that is, and which would fit."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from runner.components.classes import all_pipelines, pipeline_called
from runner.components.constructor import component_names, fits, parameters_of, takes, types_of
from runner.errors import UserError


def chosen_pipeline(name: str, classes: Mapping[str, type]) -> Any:
    """The class of this name; raises UserError with those that fit the components' `classes` where there is none."""
    if (cls := pipeline_called(name)) is not None:
        return cls
    raise UserError(f"model.pipeline: diffusers has no {name}; {_that_fit(classes)}")


def check_taken(root: Path, cls: Any, classes: Mapping[str, type]) -> None:
    """By the rule of `from_pipe`: a model of another class than the one that is annotated is not switched over."""
    for name, one in classes.items():
        if issubclass(one, ModelMixin) and not takes(cls, name, one):
            wanted = " or a ".join(annotated.__name__ for annotated in types_of(cls, name))
            raise UserError(
                f"model.pipeline: a {cls.__name__} takes a {wanted} as its {name}, and that of {root} is a "
                f"{one.__name__}; {_that_fit(classes)}"
            )


def check_names(cls: Any, names: Iterable[str]) -> None:
    """Raises UserError for a component that the pipeline does not have."""
    for name in names:
        if name not in parameters_of(cls):
            listed = ", ".join(component_names(cls))
            raise UserError(f"components.{name}: a {cls.__name__} has no such component; it has {listed}")


def _that_fit(classes: Mapping[str, type]) -> str:
    """Which pipelines could be put together from these components, those that want more after the others."""
    found = [(missing, cls.__name__) for cls in all_pipelines() if (missing := fits(cls, classes)) is not None]
    ready = [name for missing, name in found if not missing]
    more = [f"{name} (with {_paths(missing)})" for missing, name in found if missing]
    return f"these fit: {', '.join([*ready, *more])}" if found else "none of its pipelines fits"


def _paths(names: Iterable[str]) -> str:
    return ", ".join(f"components.{name}.path" for name in names)
