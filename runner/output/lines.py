"""The lines of an output folder's journals: what was made, and what failed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from runner.request import Request


@dataclass(frozen=True, kw_only=True)
class _Line:
    """What every line says of its request."""

    id: str
    prompt: str | int | None = ""
    seed: int = 0
    call: Mapping[str, Any] = field(default_factory=dict)
    lora: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it is written; adapters only where there were any."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if name != "lora" or value}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self | None:
        """None where the object is no line of ours. What a later version may have added is left out."""
        try:
            line = cls(**{one.name: value[one.name] for one in fields(cls) if one.name in value})
        except TypeError:  # a field is missing
            return None
        return line if isinstance(line.id, str) and line.is_sound() else None

    def is_sound(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class ManifestLine(_Line):
    """A finished request. `file` is relative to the output folder; `sha256` is of the pixels, `file_sha256` of the
    file, whose size and time of writing tell whether it has to be read to know that it is whole."""

    file: str
    bytes: int
    mtime_ns: int
    file_sha256: str
    sha256: str = ""
    rank: int = 0
    seconds: float = 0.0

    def is_sound(self) -> bool:
        return isinstance(self.file, str) and not Path(self.file).is_absolute() and ".." not in Path(self.file).parts


@dataclass(frozen=True, kw_only=True)
class Failure(_Line):
    """A failed try: where, why, and which try it was."""

    stage: str = "unknown"
    component: str = "unknown"
    error: str
    message: str
    traceback: str = ""
    host: str = ""
    attempts: int = 1
    time: str = ""

    @property
    def reason(self) -> str:
        """In one line."""
        return f"{self.stage}/{self.component}: {self.error}: {self.message}"

    @classmethod
    def without_a_word(cls, request: Request, attempts: int) -> "Failure":
        message = f"the job ended each of the {attempts} times that this request was being made"
        return cls(**request.described(), error="Skipped", message=message, attempts=attempts)
