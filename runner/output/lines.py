"""The lines of an output folder's journals: what was made, and what failed."""

from collections.abc import Mapping, Sequence
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
class OutputFile:
    """A file of a finished request. `file` is relative to the output folder; `sha256` is of the pixels (or samples, or
    numbers), `file_sha256` of the file, whose size and time of writing tell whether it has to be read to know that it
    is whole."""

    file: str
    bytes: int
    mtime_ns: int
    file_sha256: str
    sha256: str = ""
    field: str = ""  # of the pipeline's output
    kind: str = ""
    shape: Sequence[int] = ()  # of what `sha256` is of
    fps: float | None = None
    sampling_rate: int | None = None
    sound_field: str = ""  # of the sound in a clip's file
    sound_sha256: str = ""
    note: str = ""  # what of the output the file does not hold as it was

    def to_json(self) -> dict[str, Any]:
        """Without what there is none of."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value not in ("", None, ())}

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """None where the value is no file of ours."""
        try:
            return cls(**{one.name: value[one.name] for one in fields(cls) if one.name in value})
        except TypeError:  # no mapping, or a field is missing
            return None

    def is_sound(self) -> bool:
        """Whether it is below the output folder."""
        return isinstance(self.file, str) and not Path(self.file).is_absolute() and ".." not in Path(self.file).parts


@dataclass(frozen=True, kw_only=True)
class ManifestLine(_Line):
    """A finished request: what each of its files is, and what its output holds besides. The facts of the first file
    stand in the line itself too."""

    file: str
    bytes: int
    mtime_ns: int
    file_sha256: str
    sha256: str = ""
    files: Sequence[OutputFile] = ()  # none in the lines of earlier versions, which wrote one file a request
    values: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)  # field of the output: why it is not written
    rank: int = 0
    seconds: float = 0.0
    made_on: Mapping[str, str] = field(default_factory=dict)  # the device, and the releases of what computed on it

    @property
    def all_files(self) -> Sequence[OutputFile]:
        first = {name: getattr(self, name) for name in ("file", "bytes", "mtime_ns", "file_sha256", "sha256")}
        return self.files or (OutputFile(**first),)

    def to_json(self) -> dict[str, Any]:
        line = super().to_json() | {"files": [file.to_json() for file in self.files]}
        return {name: value for name, value in line.items() if value or name not in ("files", "values", "left_out")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self | None:
        told = value.get("files", [])
        files = [OutputFile.from_json(one) for one in told] if isinstance(told, list) else [None]
        return None if None in files else super().from_json({**value, "files": tuple(files)})

    def is_sound(self) -> bool:
        return all(file.is_sound() for file in self.all_files)


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
