"""Prompt files: text, JSON lines or CSV, each read into the same list of prompts."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.errors import UserError

_INT = re.compile(r"[+-]?[0-9]{1,20}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][+-]?[0-9]+)?")
_SEEDS = range(-(2**63), 2**64)  # what torch.Generator.manual_seed takes


@dataclass(frozen=True)
class Prompt:
    """One request: what to make, and how it differs from the job."""

    text: str | int  # a prompt, or a class label
    seed: int | None = None
    call: Mapping[str, Any] = field(default_factory=dict)  # call arguments that override the job's
    lora: Mapping[str, float] | None = None  # weights of adapters by name; None: those of the config


def read_prompts(path: Path) -> list[Prompt]:
    """Read a .txt, .jsonl or .csv prompt file."""
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: cannot read prompts from a '{path.suffix}' file; use .txt, .jsonl or .csv")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such prompt file; check the path") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read the prompt file ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: the file is not UTF-8; save it as UTF-8") from error
    prompts = reader(path, text)
    if not prompts:
        raise UserError(f"{path}:1: no prompts in the file; add at least one")
    return prompts


def _read_text(path: Path, text: str) -> list[Prompt]:
    """One prompt a line."""
    return [Prompt(line.strip()) for line in io.StringIO(text, newline=None) if line.strip()]


def _read_jsonl(path: Path, text: str) -> list[Prompt]:
    """One JSON object a line."""
    prompts = []
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); write one object a line") from error
        if not isinstance(row, dict):
            raise UserError(f'{where}: {type(row).__name__}, not an object; write {{"prompt": "..."}}')
        prompts.append(_prompt(row, where))
    return prompts


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
            named = zip(header, cells, strict=False)
            values = {name: cell if name == "prompt" else _value(cell) for name, cell in named if cell}
            prompts.append(_prompt(values, where))
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not CSV ({error}); check the quotes") from error
    return prompts


def _check_header(header: list[str], where: str) -> None:
    """The header names each column once, the prompt's among them."""
    if "prompt" not in header and "class_labels" not in header:
        raise UserError(f"{where}: no 'prompt' column in the header {header}; name one column 'prompt'")
    if "" in header or len(set(header)) < len(header):
        raise UserError(f"{where}: a column of the header {header} is unnamed or named twice; give each its own name")


def _value(cell: str) -> int | float | bool | str:
    """A cell as the number or truth value it looks like, else as text."""
    if _INT.fullmatch(cell):
        return int(cell)
    if _FLOAT.fullmatch(cell):
        return float(cell)
    return {"true": True, "false": False}.get(cell.lower(), cell)


def _prompt(row: Mapping[str, Any], where: str) -> Prompt:
    """A row's fields, checked."""
    call = dict(row)
    text, label, seed = call.pop("prompt", None), call.pop("class_labels", None), call.pop("seed", None)
    if text is not None and label is not None:
        raise UserError(f"{where}: both 'prompt' and 'class_labels'; keep one")
    if label is not None:
        if not isinstance(label, int) or isinstance(label, bool):
            raise UserError(f"{where}: class_labels {label!r} is not an integer; give one class number")
    elif not isinstance(text, str) or not text.strip():
        found = "no prompt" if text is None or text == "" else f"prompt {text!r} is not text"
        raise UserError(f"{where}: {found}; give 'prompt' some text")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed not in _SEEDS):
        raise UserError(f"{where}: seed {seed!r} is not an integer of 64 bits; give a whole number or leave it out")
    return Prompt(text if label is None else label, seed, call, _lora(call.pop("lora", None), where))


def _lora(weights: Any, where: str) -> Mapping[str, float] | None:
    """Adapters' weights by name. A .csv cell cannot hold any."""
    numbers = isinstance(weights, dict) and all(
        isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
        for weight in weights.values()
    )
    if weights is not None and not numbers:
        raise UserError(f'{where}: lora {weights!r} is not {{"name": weight}}; give each adapter a finite number')
    return weights


_READERS: dict[str, Callable[[Path, str], list[Prompt]]] = {
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
}
