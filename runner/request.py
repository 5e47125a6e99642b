"""What is asked for: one picture or clip, and which part of a job's requests a run makes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from runner.errors import UserError
from runner.inputs.input_file import described, files_in

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One picture or clip to make. `id` is a hash of everything that decides its bits; where it comes in the job
    (`number`) and what its file is called (`stem`) do not."""

    prompt: str | int | None  # text, or a class label; None where the inputs say all
    seed: int = 0
    call: Mapping[str, Any] = field(default_factory=dict)  # arguments of the pipeline's own call, files as InputFile
    lora: Mapping[str, float] = field(default_factory=dict)  # strength of each active adapter, in their order
    output_type: str = "pil"
    id: str = ""
    number: int = 0
    stem: str = ""

    def __str__(self) -> str:
        return f"{self.id} {self.title[:60]!r}"

    @property
    def title(self) -> str:
        """What a person calls it by: its prompt; without one, its first text, or else the name of its first file."""
        if self.prompt is not None:
            return str(self.prompt)
        texts = [value for name, value in self.call.items() if isinstance(value, str) and name.endswith("prompt")]
        return next(iter([*texts, *(file.path.stem for file in files_in(self.call))]), "")

    def described(self) -> dict[str, Any]:
        """What a manifest line, a failure and a picture's own recipe say of the request."""
        told = {"id": self.id, "prompt": self.prompt, "seed": self.seed, "call": described(self.call)}
        return told | ({"lora": dict(self.lora)} if self.lora else {})


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
