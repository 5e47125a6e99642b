"""Where a component comes from: what it is before it is loaded, and which files it is in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from weights.checkpoint import Library, weight_files


@dataclass(frozen=True)
class Source:
    """`name` in the pipeline; its class; the folder with its configuration and weights.

    `variant` is in the names of the weight files that are read ("fp16"), None for those without.
    """

    name: str
    cls: Any
    folder: Path
    variant: str | None = None

    @property
    def is_module(self) -> bool:
        return issubclass(self.cls, nn.Module)

    @property
    def library(self) -> Library:
        return library_of(self.cls)

    def weight_files(self) -> list[Path]:
        return weight_files(self.folder, self.library, self.variant)

    @property
    def stored_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.weight_files())


def library_of(cls: type) -> Library:
    """Whose rules say how a component of this class is stored."""
    return Library.transformers if issubclass(cls, PreTrainedModel) else Library.diffusers
