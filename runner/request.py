"""One job split over the tasks of an array: each makes every n-th request, in a folder of its own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from runner.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Part `index` of `size`, counted from 1. The default is the whole."""

    index: int = 1
    size: int = 1

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Every size-th item: the parts share out all of them without overlap, evenly also when costs drift."""
        return items[self.index - 1 :: self.size]

    @property
    def name(self) -> str:
        return f"part-{self.index}-of-{self.size}" if self.size > 1 else ""


def parse_part(text: str | None) -> Part:
    """`2/4` is the second of four parts. Raises UserError."""
    if text is None:
        return Part()
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"job.part is {text!r}; write i/n, for example 1/4 for the first of four parts")
    return Part(int(match[1]), int(match[2]))
