"""Names that a model's files hold become classes, of the known libraries only: a name never becomes an import."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES, simple_get_class_obj

import pipelines
from runner.components.reading import reading
from runner.errors import UserError

INDEX = "model_index.json"
_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


def pipeline_class(index_file: Path, index: Mapping[str, Any]) -> Any:
    """The class of pipeline that a model_index.json names. Raises UserError."""
    name = index.get("_class_name")
    if isinstance(name, list):
        raise UserError(f"{index_file}: {name} is a pipeline of the directory's own, and code of a model is never run")
    writer = index.get("_diffusers_version", "an unknown version")
    cls = _named_pipeline(name, f"{index_file}: {name!r}")
    if cls is None:
        raise UserError(
            f"{index_file}: {name!r} is no pipeline of diffusers {diffusers.__version__}, which is installed; the "
            f"directory was written by {writer}"
        )
    return cls


def pipeline_called(name: str) -> Any:
    """The class of pipeline of this name, None where there is none."""
    return _named_pipeline(name, f"model.pipeline={name}")


def all_pipelines() -> list[Any]:
    """Every class of pipeline that diffusers and we have; it imports them all, which takes two seconds."""
    found = [getattr(pipelines, name) for name in pipelines.__all__]
    for name in dir(diffusers):
        if name.endswith("Pipeline") and "Modular" not in name:
            cls = getattr(diffusers, name, None)
            if isinstance(cls, type) and issubclass(cls, DiffusionPipeline) and cls is not DiffusionPipeline:
                found.append(cls)
    return found


def component_class(index_file: Path, name: str, library: str, class_name: str) -> type:
    """The class of a component that an index lists as [library, class]. Raises UserError."""
    where = f"{index_file}: {name} is a {library} {class_name}"
    with reading(f"{where}, which cannot be imported"):
        known: Any = _LIBRARIES.get(library) or getattr(diffusers.pipelines, library, None)
    if not isinstance(known, ModuleType):
        code = index_file.parent / name / f"{library}.py"
        why = f"{code}, and code of a model is never run" if code.exists() else "which no library here provides"
        raise UserError(f"{where}, {why}")
    with reading(f"{where}, which cannot be imported"):
        try:
            cls = simple_get_class_obj(library, class_name)  # which knows the names that classes had before
        except AttributeError:
            raise UserError(f"{where}, which is not installed: {library} has no such class") from None
        refuse_dummy(cls)
    if not isinstance(cls, type) or not _is_loadable(cls, library):
        raise UserError(f"{where}, which is no model, scheduler, tokenizer or processor")
    return cls


def refuse_dummy(cls: Any) -> None:
    """What the libraries give in place of a class whose packages are not installed; being called, it names them."""
    if type(cls).__name__ == "DummyObject":
        cls()


def _named_pipeline(name: Any, where: str) -> Any:
    with reading(f"{where} cannot be imported"):
        cls = None
        if isinstance(name, str):
            cls = getattr(pipelines, name, None) or getattr(diffusers, name, None)
        refuse_dummy(cls)
    is_one = isinstance(cls, type) and issubclass(cls, DiffusionPipeline) and cls is not DiffusionPipeline
    return cls if is_one else None


def _is_loadable(cls: type, library: str) -> bool:
    """By the rule of `load_sub_model`; a pipeline inside a pipeline is not."""
    if issubclass(cls, DiffusionPipeline) or not callable(getattr(cls, "from_pretrained", None)):
        return False
    if library not in _LIBRARIES:  # a module of diffusers.pipelines
        return True
    bases = [getattr(_LIBRARIES[library], name, None) for name in LOADABLE_CLASSES[library]]
    return issubclass(cls, tuple(base for base in bases if isinstance(base, type)))
