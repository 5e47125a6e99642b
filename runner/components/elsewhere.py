"""A component from a folder of its own (components.<name>.path): what it is, as its own files say."""

import os
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import ConfigMixin, ModelMixin
from torch import nn
from transformers import PreTrainedModel

from runner.components.classes import INDEX, refuse_dummy
from runner.components.constructor import takes, types_of
from runner.components.reading import reading
from runner.errors import UserError
from weights.files import read_object, why_unreadable

# Where a tokenizer or a processor says what it is: the file, and its key.
_SAYS_ITS_CLASS = (
    ("tokenizer_config.json", "tokenizer_class"),
    ("processor_config.json", "processor_class"),
    ("preprocessor_config.json", "image_processor_type"),
    ("preprocessor_config.json", "feature_extractor_type"),
)


def class_elsewhere(name: str, folder: Path, pipeline: Any, listed: type | None) -> type:
    """The class of the component in a folder; `listed` is that of the model's own, where it has one.

    Raises UserError for a folder that holds no such component, and a class that the pipeline has no room for.
    """
    where = f"components.{name}.path"
    _check_folder(where, name, folder)
    known = [one for one in (listed, *types_of(pipeline, name)) if one is not None]
    if any(issubclass(one, nn.Module) for one in known):
        cls = _model_class(where, folder, known, listed)
    elif configured := next((one for one in known if issubclass(one, ConfigMixin)), None):
        cls = _named_in(where, folder / str(configured.config_name), known)
    else:
        cls = listed or _processor_class(where, folder, known)
    if not takes(pipeline, name, cls):
        wanted = " or a ".join(one.__name__ for one in types_of(pipeline, name))
        raise UserError(f"{where}: {folder} holds a {cls.__name__}, where a {pipeline.__name__} takes a {wanted}")
    return cls


def _check_folder(where: str, name: str, folder: Path) -> None:
    if not os.path.isdir(folder):
        base = "" if folder.is_absolute() else f" (from {Path.cwd()}, the working folder)"
        raise UserError(f"{where}: no folder {folder}{base}")
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"{where}: {why_unreadable(folder, error)}") from error
    if INDEX in names and (folder / name).is_dir():
        raise UserError(f"{where}: {folder} is a whole model; the component's own folder is {folder / name}")


def _model_class(where: str, folder: Path, known: list[type], listed: type | None) -> type:
    config = read_object(folder / "config.json")
    if "_class_name" in config:
        return _named_in(where, folder / "config.json", known)
    alike = [
        one for one in known
        if issubclass(one, PreTrainedModel) and getattr(one.config_class, "model_type", "") == config.get("model_type")
    ]  # fmt: skip
    if listed in alike and listed is not None:  # a T5EncoderModel of a folder that has the whole T5
        return listed
    for name in config.get("architectures") or ():
        cls = _looked_up(where, folder / "config.json", name, transformers)
        if issubclass(cls, PreTrainedModel) and (not known or issubclass(cls, tuple(known))):
            return cls
        return alike[0] if alike else cls
    if alike:
        return alike[0]
    raise UserError(f"{where}: {folder / 'config.json'} names no class (_class_name, or architectures)")


def _named_in(where: str, file: Path, known: list[type]) -> type:
    """The class of diffusers that a file names as `_class_name`."""
    name = read_object(file).get("_class_name")
    for one in known:
        if one.__name__ == name:  # also of what only a module of diffusers.pipelines has
            return one
    cls = _looked_up(where, file, name, diffusers)
    if not issubclass(cls, ModelMixin | ConfigMixin):
        raise UserError(f"{where}: {file} says that it is a {name}, which is no model and no scheduler")
    return cls


def _processor_class(where: str, folder: Path, known: list[type]) -> type:
    for file, key in _SAYS_ITS_CLASS:
        if os.path.isfile(folder / file) and isinstance(name := read_object(folder / file).get(key), str):
            return _looked_up(where, folder / file, name, transformers)
    if len(known) == 1 and callable(getattr(known[0], "from_pretrained", None)):
        return known[0]
    raise UserError(f"{where}: no file in {folder} says what it is")


def _looked_up(where: str, file: Path, name: Any, library: Any) -> type:
    with reading(f"{where}: {file} says that it is a {name}, which cannot be imported"):
        cls = getattr(library, name, None) if isinstance(name, str) else None
        refuse_dummy(cls)
    if not isinstance(cls, type) or not callable(getattr(cls, "from_pretrained", None)):
        raise UserError(f"{where}: {file} says that it is a {name!r}, which {library.__name__} here does not have")
    return cls
