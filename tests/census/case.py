"""What the census needs to know about a pipeline class: its parts, and a call of it as a user would write it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

PROMPT = "a red fox in the deep snow"
NEGATIVE = "blurry, low quality"


@dataclass(frozen=True)
class File:
    """A call argument that is given as a file: one of tests/census/files.py. `told`: written as {file: NAME}, for an
    argument whose annotation does not say that it takes a picture; so is a picture whose `mode` is told."""

    name: str
    told: bool = False
    mode: str = ""

    def written(self) -> Any:
        """As a user writes it."""
        mode = {"mode": self.mode} if self.mode else {}
        return {"file": self.name} | mode if self.told or mode else self.name


PICTURE, OTHER, MASK, CLIP = File("picture.png"), File("other.png"), File("mask.png"), File("clip.mp4")


def array(*shape: int) -> File:
    """Random numbers."""
    return File(f"{'x'.join(map(str, shape))}.npy")


@dataclass(frozen=True)
class Case:
    """One class of diffusers' pipelines, over tiny random parts.

    `parts` makes the constructor's arguments; classes of a family share it. `call` holds the arguments of the call, in
    plain values and `File`s. `prompt` is None for a pipeline that takes none. `needs` are packages that the class needs
    beside this project's own. `stock` says how the stock pipeline is given an argument that is no plain value or file.
    `settings` are what the runner is told beside the call, key=value; `prepare` does the same to the stock pipeline.
    `gap` is what the runner cannot do with it yet: the case is tried all the same, and has to fail.
    """

    pipeline: str
    parts: Callable[[], Mapping[str, Any]]
    call: Mapping[str, Any]
    prompt: str | int | None = PROMPT
    needs: tuple[str, ...] = ()
    dtype: str = "float32"
    stock: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    prepare: Callable[[Any], None] = lambda pipeline: None
    gap: str = ""

    def __str__(self) -> str:
        return self.pipeline

    @property
    def missing(self) -> list[str]:
        """The packages that it needs and this environment lacks."""
        return [package for package in self.needs if find_spec(package) is None]

    @property
    def files(self) -> list[str]:
        """The names of its input files."""
        return list(dict.fromkeys(file.name for file in _files_in(self.call)))


def replaced(value: Any, by: Callable[[File], Any]) -> Any:
    """The value with each `File` in it replaced."""
    if isinstance(value, File):
        return by(value)
    if isinstance(value, Mapping):
        return {key: replaced(one, by) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [replaced(one, by) for one in value]
    return value


def _files_in(value: Any) -> list[File]:
    found: list[File] = []
    replaced(value, found.append)
    return found
