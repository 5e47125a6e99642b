"""Where a component comes from: what it is before it is loaded, which files it is in, and what is changed of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from weights.checkpoint import Checkpoint, Library, weight_files


@dataclass(frozen=True)
class Changes:
    """What a user changed of a component, as far as it has an effect; None and nothing where it is as it is stored.

    `dtype` by its name; `attention`: a backend of diffusers; `tiling` and `slicing`: the arguments that these are
    enabled with; `settings` of a scheduler, and in `exchanged` the class of its file where another takes its place;
    `compile`: as `execution.compile` says.
    """

    dtype: str | None = None
    attention: str | None = None
    tiling: Mapping[str, Any] | None = None
    slicing: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    exchanged: Any = None
    compile: bool | str = False


@dataclass(frozen=True)
class Source:
    """`name` in the pipeline; its class; the folder with its configuration and weights.

    `variant` is in the names of the weight files that are read ("fp16"), None for those without. `file`: the one file
    that the weights are in, perhaps by the names of those who trained them; diffusers then knows how they map.
    `absent`: why its weights are not looked at, where only what they would take is wanted.
    """

    name: str
    cls: Any
    folder: Path
    variant: str | None = None
    file: Path | None = None
    changes: Changes = Changes()
    absent: str | None = None

    @property
    def is_module(self) -> bool:
        return issubclass(self.cls, nn.Module)

    @property
    def library(self) -> Library:
        return library_of(self.cls)

    def told(self) -> dict[str, Any]:
        """What is changed, by the last word of the keys that say so."""
        one = self.changes
        told = {"dtype": one.dtype, "attention": one.attention, "tiling": one.tiling, "slicing": one.slicing}
        told["class"] = None if one.exchanged is None else self.cls.__name__
        return {name: value for name, value in told.items() if value is not None} | dict(one.settings)

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder, self.library, self.variant, single=self.file)

    def weight_files(self) -> list[Path]:
        return [self.file] if self.file is not None else weight_files(self.folder, self.library, self.variant)

    @property
    def stored_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.weight_files())


def library_of(cls: type) -> Library:
    """Whose rules say how a component of this class is stored."""
    return Library.transformers if issubclass(cls, PreTrainedModel) else Library.diffusers
