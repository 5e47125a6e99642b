"""What an argument takes, read off its annotation: text, pictures, arrays, lists, types of the pipeline's own."""

import inspect
import sys
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import numpy as np
import torch
from PIL import Image

_LISTS = (list, tuple, Iterable, typing.Iterable)


@dataclass(frozen=True)
class Takes:
    """The union of what may be given. `item` is what a list may hold; `records` are dataclasses, `choices` enums.

    `is_known` is false where there is no annotation, or one that says nothing: there, text is text.
    """

    is_known: bool = False
    text: bool = False
    path: bool = False
    picture: bool = False
    array: bool = False
    tensor: bool = False
    mapping: bool = False
    other: bool = False  # numbers, truth values, functions
    item: "Takes | None" = None
    is_tuple: bool = False  # the only sequence that is taken; some pipelines compare it with one of their own
    records: tuple[type, ...] = ()
    choices: tuple[type[Enum], ...] = ()

    @property
    def is_file(self) -> bool:
        """Whether a text can only be the path of a file. A type that opens paths by itself says so with Path."""
        if self.text and not self.path:
            return False
        return self.path or self.picture or self.array or self.tensor or (self.item is not None and self.item.is_file)

    @property
    def may_be_text(self) -> bool:
        return not self.is_known or self.text or bool(self.choices) or (self.item is not None and self.item.may_be_text)

    @property
    def has_pictures(self) -> bool:
        return self.picture or (self.item is not None and self.item.has_pictures)

    @property
    def record(self) -> type | None:
        """The one type of the pipeline's own, alone or in a list."""
        return self.records[0] if self.records else self.item.record if self.item else None

    def words(self) -> str:
        """For messages."""
        told = [
            word
            for word, holds in (
                ("text", self.text),
                ("a picture", self.picture),
                ("a list of pictures", not self.picture and self.has_pictures),
                ("an array", self.array),
                ("a tensor", self.tensor),
            )
            if holds
        ]
        return " or ".join(told) or "no file"


ANYTHING = Takes()


def takes(annotation: Any) -> Takes:
    """What the annotation takes."""
    if annotation in (inspect.Parameter.empty, Any, object):
        return ANYTHING
    if annotation in (None, NoneType):
        return Takes(is_known=True)
    if isinstance(annotation, typing.TypeVar | str | typing.ForwardRef):
        return ANYTHING
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, UnionType):
        return _either([takes(argument) for argument in arguments])
    if origin is typing.Annotated:
        return takes(arguments[0])
    if origin is typing.Literal:
        return Takes(is_known=True, text=True, other=True)
    kind = origin or annotation
    if _is_list(kind):
        return Takes(
            is_known=True,
            item=_either([takes(argument) for argument in arguments]) if arguments else ANYTHING,
            is_tuple=kind is tuple,
        )
    return _of_type(kind)


def fields_of(record: type) -> Mapping[str, tuple[Takes, bool]]:
    """For each field of a type of the pipeline's own: what it takes, and whether it has to be given."""
    assert is_dataclass(record)
    hints = _hints(record, {field.name: field.type for field in fields(record)})
    required = {
        name
        for name, parameter in inspect.signature(record).parameters.items()
        if parameter.default is inspect.Parameter.empty
    }
    return {field.name: (takes(hints[field.name]), field.name in required) for field in fields(record) if field.init}


def annotations_of(function: Any) -> Mapping[str, Any]:
    """The annotations of a call's parameters, those that are written as text resolved as far as they can be."""
    parameters = inspect.signature(function).parameters
    return _hints(function, {name: parameter.annotation for name, parameter in parameters.items()})


def _hints(owner: Any, annotations: Mapping[str, Any]) -> dict[str, Any]:
    """Each by itself: a name that is imported for type checkers only must not hide what the others say."""
    names = vars(sys.modules.get(getattr(owner, "__module__", ""), typing))
    return {name: _resolved(annotation, names) for name, annotation in annotations.items()}


def _resolved(annotation: Any, names: Mapping[str, Any]) -> Any:
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if not isinstance(annotation, str):
        return annotation
    # The library's own words in its own module, as typing.get_type_hints evaluates them; nothing of the user's. Once
    # more without quotes: 'PIL.Image.Image' | None is no type.
    for text in (annotation, annotation.replace("'", "").replace('"', "")):
        try:
            return typing.get_type_hints(type("_", (), {"__annotations__": {"_": text}}), dict(names))["_"]
        except (NameError, AttributeError, TypeError, SyntaxError):
            continue
    return inspect.Parameter.empty


def _either(ones: list[Takes]) -> Takes:
    """What takes any of these; `None` beside them says nothing more."""
    items = [one.item for one in ones if one.item is not None]
    flags = {
        name: any(getattr(one, name) for one in ones)
        for name in ("text", "path", "picture", "array", "tensor", "mapping", "other")
    }
    return Takes(
        is_known=all(one.is_known for one in ones),
        item=_either(items) if items else None,
        is_tuple=bool(items) and all(one.is_tuple for one in ones if one.item is not None),
        records=tuple(dict.fromkeys(record for one in ones for record in one.records)),
        choices=tuple(dict.fromkeys(choice for one in ones for choice in one.choices)),
        **flags,
    )


def _is_list(kind: Any) -> bool:
    return kind in _LISTS or (isinstance(kind, type) and issubclass(kind, list | tuple))


def _of_type(kind: Any) -> Takes:
    if not isinstance(kind, type):
        return Takes(is_known=True, other=True)  # a function, as a callback
    if isinstance(kind, torch._C._TensorMeta) or type(kind) is type(torch.FloatTensor):
        return Takes(is_known=True, tensor=True)
    if issubclass(kind, Enum):
        return Takes(is_known=True, choices=(kind,))
    if issubclass(kind, Path):
        return Takes(is_known=True, path=True)
    if issubclass(kind, Mapping) or kind is dict:
        return Takes(is_known=True, mapping=True)
    if is_dataclass(kind):
        return Takes(is_known=True, records=(kind,))
    return Takes(
        is_known=True,
        text=kind is str,
        picture=kind in (Image.Image, Image),
        array=issubclass(kind, np.ndarray),
        other=kind in (int, float, bool, complex),
    )
