"""What a value may be, wherever the user wrote it: what can be written down again, in strict JSON and in UTF-8."""

import math
import re
from typing import Any

from runner.errors import UserError

SEEDS = range(-(2**63), 2**64)  # what torch.Generator.manual_seed takes; no number of a job needs more
# All but tab and line breaks, and halves of a character: a byte that is not UTF-8 arrives as one of those.
STRAY = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
DEEPEST = 20  # of lists in lists


def check_value(value: Any, where: str, depth: int = 0) -> None:
    """Raises UserError, saying `where`: no finite number of 64 bits, no clean text, or no list or mapping of these."""
    if isinstance(value, str):
        check_text(value, where)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where} is {value}; give a finite number")
    elif isinstance(value, int):
        if value not in SEEDS:
            raise UserError(f"{where} is a number beyond 64 bits; give a smaller one")
    elif depth == DEEPEST:
        raise UserError(f"{where}: lists or mappings are nested more than {DEEPEST} deep")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_value(item, f"{where}[{index}]", depth + 1)
    elif isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise UserError(f"{where}: the name {shown(name)} is not text; put it in quotes")
            check_text(name, f"a name in {where}")
            check_value(item, f"{where}.{name}", depth + 1)
    elif value is not None:
        raise UserError(
            f"{where} is a {type(value).__name__}; give text, a number, true, false, null, or a list of these"
        )


def check_seeds(first: int, count: int, where: str) -> None:
    """Raises UserError where `count` seeds from `first` on leave the 64 bits of a generator."""
    if first not in SEEDS or first + count - 1 not in SEEDS:
        upto = f" to {first + count - 1}" if count > 1 else ""
        raise UserError(f"{where} is {first}{upto}, beyond 64 bits; give a smaller number")


def check_text(text: str, where: str) -> None:
    """Raises UserError for text that no prompt, name or path can hold."""
    if stray := STRAY.search(text):
        raise UserError(f"{where} holds {stray_name(stray[0])}; leave it out")


def stray_name(character: str) -> str:
    if "\ud800" <= character <= "\udfff":
        return "bytes that are not UTF-8, or half a character"
    return "a NUL character" if character == "\0" else f"the control character {character!r}"


def shown(value: Any, limit: int = 80) -> str:
    """The value as a message quotes it: in one line, and not the whole of a long one."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
