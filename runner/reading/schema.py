"""What nested dataclasses say of a configuration: which keys there are, and what each takes."""

import difflib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, NamedTuple

from runner.errors import UserError
from runner.reading.values import shown


class Leaf(NamedTuple):
    """A value where the schema has no more to say of what is in it. `annotation` is None where no such key is."""

    key: str
    annotation: Any
    value: Any


def annotation_of(schema: Any, key: str) -> Any:
    """The type annotated at a dotted key, None where there is no such key. What is in a dict of Any is Any."""
    is_free = False
    for part in key.split("."):
        if is_dataclass(schema):
            schema = typing.get_type_hints(schema).get(part)
        elif typing.get_origin(schema) is dict and part:
            schema = typing.get_args(schema)[1]
            is_free = schema is Any
        elif not is_free or not part:
            return None
    return schema


def leaves(schema: Any, value: Any, key: str = "") -> Iterator[Leaf]:
    """Every leaf of a configuration. Raises UserError for a section that is none."""
    if is_dataclass(schema) and value is not None:
        if not isinstance(value, dict):
            raise UserError(f"{key or 'the configuration'} is {shown(value)}, and no section (a mapping of keys)")
        annotations = typing.get_type_hints(schema)
        for name, item in value.items():
            annotation = annotations.get(name)
            if annotation is None:
                yield Leaf(_first_leaf(_dotted(key, name), item), None, item)
            else:
                yield from leaves(annotation, item, _dotted(key, name))
    elif typing.get_origin(schema) is dict and is_dataclass(typing.get_args(schema)[1]) and isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(typing.get_args(schema)[1], item, _dotted(key, name))
    elif typing.get_origin(schema) is list and isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(typing.get_args(schema)[0], item, f"{key}[{index}]")
    else:
        yield Leaf(key, schema, value)


def is_optional(annotation: Any) -> bool:
    return typing.get_origin(annotation) is UnionType and NoneType in typing.get_args(annotation)


def is_text(annotation: Any) -> bool:
    return annotation in (str, str | None)


def nearest(key: str, known: Sequence[str]) -> str:
    """The known key that is spelt most like it: of those with its last part, where there are any."""
    alike = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
    return difflib.get_close_matches(key, alike or known, n=1, cutoff=0.0)[0]


def _dotted(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _first_leaf(key: str, value: Any) -> str:
    """A misspelt section is best understood by a key in it."""
    while isinstance(value, dict) and value:
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key
