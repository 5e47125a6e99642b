"""Values as the user wrote them become files, and objects of the pipeline's own types, where arguments take those."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from runner.errors import UserError
from runner.inputs.input_file import Built
from runner.inputs.takes import ANYTHING, Takes, fields_of
from runner.reading.values import shown

FILE = "file"  # the key of {file: PATH}
_CHOICES = {"tensor": str, "mode": str, "batch": bool}  # what {file: PATH} may say beside, each of its type
_MODES = ("RGB", "RGBA", "L", "LA")  # that a picture may be wanted in


@dataclass(frozen=True)
class NamedFile:
    """A file that the user named, not looked at yet: `where`, in words, and what the argument there takes."""

    written: str
    path: Path
    takes: Takes
    where: str
    name: str  # of the innermost argument or field that it is for
    tensor: str = ""
    mode: str = ""
    batch: bool = True


@dataclass(frozen=True)
class _Place:
    """Where a value stands: in words, in which folder its paths begin, and for which argument or field."""

    where: str
    base: Path
    name: str = ""

    def at(self, name: str | int) -> "_Place":
        if isinstance(name, int):
            return _Place(f"{self.where}[{name}]", self.base, self.name)
        return _Place(f"{self.where}.{name}", self.base, name)


def named(value: Any, takes: Takes, where: str, base: Path, name: str) -> Any:
    """The value with a NamedFile for each path, and a Built for each mapping that is one of the pipeline's own types.

    A text is a path where the argument takes pictures, arrays or tensors and no text; `{file: PATH}` is one anywhere.
    Paths are relative to `base`. Raises UserError, saying `where`.
    """
    return _named(value, takes, _Place(where, base, name))


def _named(value: Any, takes: Takes, place: _Place) -> Any:
    if isinstance(value, Mapping):
        return _mapping(value, takes, place)
    if isinstance(value, list):
        # A library's annotation may forget that lists are taken: what is in one is what may stand alone.
        item = takes.item if takes.item is not None and takes.item.is_known else takes
        items = [_named(one, item, place.at(index)) for index, one in enumerate(value)]
        is_plain = all(isinstance(one, int | float | str) for one in items)
        return tuple(items) if takes.is_tuple and is_plain else items
    if isinstance(value, str) and takes.choices and not takes.text:
        return _choice(value, takes.choices, place.where)
    if isinstance(value, str) and takes.is_file:
        return _file(value, {}, takes, place)
    if isinstance(value, int | float) and takes.has_pictures and not takes.other:
        raise UserError(
            f"{place.where} is {value}; give the path of a file, {{{FILE}: '{value}'}} where that is its name"
        )
    return value


def _mapping(value: Mapping[str, Any], takes: Takes, place: _Place) -> Any:
    if FILE in value:
        more = {name: chosen for name, chosen in value.items() if name != FILE}
        return _file(value[FILE], more, takes, place)
    if (record := takes.record) is not None:
        built = _built(value, record, place)
        return built if takes.records else [built]
    if takes.is_file and not takes.mapping:
        raise UserError(f"{place.where} is {shown(dict(value))}; it takes {takes.words()}: write {{{FILE}: PATH}}")
    return {name: _named(item, ANYTHING, place.at(name)) for name, item in value.items()}


def _built(value: Mapping[str, Any], record: type, place: _Place) -> Built:
    fields = fields_of(record)
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(name, list(fields), n=1, cutoff=0.0)[0]
            raise UserError(f"{place.where}.{name} is no field of {record.__name__}; the nearest is {near!r}")
    if missing := [name for name, (_, required) in fields.items() if required and name not in value]:
        raise UserError(f"{place.where}: {record.__name__} needs {missing[0]}; it has {', '.join(fields)}")
    return Built(record, {name: _named(item, fields[name][0], place.at(name)) for name, item in value.items()})


def _choice(value: str, choices: tuple[type[Enum], ...], where: str) -> Enum:
    members = {key: member for choice in choices for member in choice for key in (member.value, member.name)}
    if value not in members:
        known = ", ".join(member.name for choice in choices for member in choice)
        raise UserError(f"{where} is {value!r}; it must be one of {known}")
    return members[value]


def _file(written: Any, more: Mapping[str, Any], takes: Takes, place: _Place) -> NamedFile:
    where = place.where
    if not isinstance(written, str) or not written.strip():
        raise UserError(f"{where} is {shown(written)}; give the path of a file")
    if "://" in written:
        raise UserError(f"{where}: {shown(written)} is an address, and nothing is fetched; save it, and give its path")
    for name, chosen in more.items():
        if not isinstance(chosen, _CHOICES.get(name, ())):
            raise UserError(
                f"{where}: {{{FILE}: ...}} takes tensor: NAME, mode: RGBA and batch: false beside it, not "
                f"{name}: {shown(chosen)}"
            )
    if (mode := more.get("mode", "RGB")) not in _MODES:
        raise UserError(f"{where}: mode is {mode!r}; it must be one of {', '.join(_MODES)}")
    return NamedFile(written, place.base / written, takes, where, place.name, **more)
