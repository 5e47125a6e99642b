"""Prompt files: text, JSON lines or CSV, each read into the same list of prompts."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runner.errors import UserError
from runner.reading.text_file import read_text
from runner.reading.values import check_text, check_value, shown

LARGEST_FILE = 1 << 30  # bytes
COMMENT = "#"  # begins the name of a column or field that is left out
_INT = re.compile(r"[+-]?[0-9]{1,4000}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)


@dataclass(frozen=True)
class Prompt:
    """One request: what to make, and how it differs from the job."""

    text: str | int | None  # a prompt, or a class label; None where a request is made of its inputs
    seed: int | None = None
    call: Mapping[str, Any] = field(default_factory=dict)  # call arguments that override the job's
    lora: Mapping[str, float] | None = None  # weights of adapters by name; None: those of the config
    where: str = field(default="", compare=False)  # "prompts.csv:4"
    is_cells: bool = field(default=False, compare=False)  # texts of a table, in which a list can only be written


def read_prompts(path: Path) -> list[Prompt]:
    """Read a .txt, .jsonl or .csv prompt file. Raises UserError with the file, and the line where there is one."""
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: cannot read prompts from a '{path.suffix}' file; use .txt, .jsonl or .csv")
    prompts = reader(path, read_text(path, "prompt file", LARGEST_FILE))
    if not prompts:
        raise UserError(f"{path}:1: no prompts in the file; add at least one")
    return prompts


def _read_text(path: Path, text: str) -> list[Prompt]:
    """One prompt a line."""
    lines = enumerate(io.StringIO(text, newline=None), 1)
    return [Prompt(line.strip(), where=f"{path}:{number}") for number, line in lines if line.strip()]


def _read_jsonl(path: Path, text: str) -> list[Prompt]:
    """One JSON object a line."""
    prompts = []
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); write one object a line") from error
        if not isinstance(row, dict):
            raise UserError(f'{where}: {type(row).__name__}, not an object; write {{"prompt": "..."}}')
        prompts.append(_prompt(row, where))
    return prompts


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """json keeps the last of two fields of one name."""
    if twice := [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]:
        raise ValueError(f"{twice[0]!r} is there twice")
    return dict(pairs)


def _read_csv(path: Path, text: str) -> list[Prompt]:
    """A header row, then one prompt a row; empty cells override nothing."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    header: list[str] = []
    prompts = []
    line = 1  # where the row starts: a quoted cell may span lines
    try:
        for row in rows:
            where, line = f"{path}:{line}", rows.line_num + 1
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if not header:
                header = cells
                _check_header(header, where)
                continue
            if len(cells) > len(header):
                raise UserError(
                    f"{where}: {len(cells)} columns, but the header has {len(header)}; "
                    "put quotes around a prompt that holds a comma"
                )
            named = {name: cell for name, cell in zip(header, cells, strict=False) if cell and name[0] != COMMENT}
            values = {name: cell if name == "prompt" else _value(cell, name, where) for name, cell in named.items()}
            prompts.append(replace(_prompt(values, where), is_cells=True))
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not CSV ({error}); check the quotes") from error
    return prompts


def _check_header(header: list[str], where: str) -> None:
    """The header names each column, and once."""
    names = [name for name in header if not name.startswith(COMMENT)]
    if "" in names or len(set(names)) < len(names):
        raise UserError(
            f"{where}: a column of the header {shown(header)} is unnamed or named twice; give each its own name "
            f"(one that begins with {COMMENT} is left out)"
        )


def _value(cell: str, name: str, where: str) -> int | float | bool | str:
    """A cell as the number or truth value it looks like, else as text."""
    if _INT.fullmatch(cell):
        return int(cell)
    if _FLOAT.fullmatch(cell):
        return float(cell)
    if _NO_NUMBER.fullmatch(cell):
        raise UserError(f"{where}: {name} is {cell}; give a finite number, or leave the cell empty")
    return {"true": True, "false": False}.get(cell.lower(), cell)


def _prompt(row: Mapping[str, Any], where: str) -> Prompt:
    """A row's fields, checked."""
    call = {name: value for name, value in row.items() if not name.startswith(COMMENT)}
    for name, value in call.items():
        check_text(name, f"{where}: the name {shown(name)}")
        check_value(value, f"{where}: {name}")
    text, label, seed = call.pop("prompt", None), call.pop("class_labels", None), call.pop("seed", None)
    if text is not None and label is not None:
        raise UserError(f"{where}: both 'prompt' and 'class_labels'; keep one")
    if label is not None:
        if not isinstance(label, int) or isinstance(label, bool):
            raise UserError(f"{where}: class_labels {shown(label)} is not an integer; give one class number")
    elif text is not None and (not isinstance(text, str) or not text.strip()):
        found = "no prompt" if text == "" else f"prompt {shown(text)} is not text"
        raise UserError(f"{where}: {found}; give 'prompt' some text")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise UserError(f"{where}: seed {shown(seed)} is not an integer; give a whole number or leave it out")
    return Prompt(text if label is None else label, seed, call, _lora(call.pop("lora", None), where), where)


def _lora(weights: Any, where: str) -> Mapping[str, float] | None:
    """Adapters' weights by name. A .csv cell cannot hold any."""
    numbers = isinstance(weights, dict) and all(
        isinstance(weight, int | float) and not isinstance(weight, bool) for weight in weights.values()
    )
    if weights is not None and not numbers:
        raise UserError(f'{where}: lora {shown(weights)} is not {{"name": weight}}; give each adapter a finite number')
    return weights


_READERS: dict[str, Callable[[Path, str], list[Prompt]]] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
}
