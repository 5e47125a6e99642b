"""An adapter in memory: for each weight it changes, two factors whose product is added to the weight."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

Scaling = float | torch.Tensor
"""What a change is multiplied with: a number, or a tensor of one, where it follows from an alpha that a file stores."""

LONGEST_NAME = 500
"""Characters of a tensor's or a layer's name. Those come from files, and may be of any length; real ones are paths of
module names."""

_LONGEST_PROBLEM = 500


class AdapterError(ValueError):
    """An adapter cannot be used with this model. Lists everything that is wrong with it; nothing was changed.

    `read_as`: whose names the file's keys were taken for, where it came that far. The text is one line.
    """

    def __init__(self, path: Path, problems: Sequence[str], read_as: str | None = None) -> None:
        super().__init__(path, problems, read_as)  # all of it in args, so that the error can be sent to other ranks
        self.path, self.problems, self.read_as = path, tuple(problems), read_as

    def __str__(self) -> str:
        named = f" (read as {self.read_as})" if self.read_as else ""
        return one_line(f"{self.path}{named} cannot be applied: " + "; ".join(map(_shortened, self.problems)))


@dataclass(frozen=True, eq=False)  # compared by identity: two reads of a file are two adapters
class LowRank:
    """The change of one weight of shape (out, in, *kernel): up @ down, scaled, with kernels flattened into `in`.

    `down` is (rank, in, *kernel), `up` is (out, rank, *ones), both in the precision they are stored in; on the host as
    they are read.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: Scaling
    rank_stabilised: bool = False

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def num_bytes(self) -> int:
        """Of the factors as stored."""
        return self.down.nbytes + self.up.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return (self.up.shape[0], *self.down.shape[1:])

    def scaling(self, weight: float) -> Scaling:
        """What up @ down is multiplied with. The order of the operations is peft's, which decides the last bit; so does
        the precision of an alpha that is a tensor, which peft computes in."""
        return weight * self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A checked adapter. `components` maps a component's name to its weights' changes, by the weight's name in it.

    `identity` is a hash of the bytes that it was read from, whatever the file is called. `read_as` says whose names the
    file's keys are.
    """

    path: Path
    identity: str
    read_as: str
    components: Mapping[str, Mapping[str, LowRank]]

    @property
    def num_bytes(self) -> int:
        """Of all factors as stored."""
        changes = (change for weights in self.components.values() for change in weights.values())
        return sum(change.num_bytes for change in changes)


def few(names: Sequence[str], limit: int = 4) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def one_line(text: str) -> str:
    """Without line breaks and control characters, whatever a file or a library put into it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def first_line(error: BaseException) -> str:
    """The library's own words: its error's kind, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_PROBLEM else f"{text[:_LONGEST_PROBLEM]}..."
