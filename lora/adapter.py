"""An adapter in memory: for each weight it changes, two factors whose product is added to the weight."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


class AdapterError(ValueError):
    """An adapter cannot be used with this model. Lists everything that is wrong with it; nothing was changed."""

    def __init__(self, path: Path, problems: Sequence[str]) -> None:
        super().__init__(path, problems)  # all of it in args, so that the error can be sent to other ranks
        self.path, self.problems = path, tuple(problems)

    def __str__(self) -> str:
        return f"{self.path} cannot be applied: " + "; ".join(self.problems)


@dataclass(frozen=True, eq=False)  # compared by identity: two reads of a file are two adapters
class LowRank:
    """The change of one weight of shape (out, in, *kernel): up @ down, scaled, with kernels flattened into `in`.

    `down` is (rank, in, *kernel), `up` is (out, rank, *ones), both on the host, in the precision they are stored in.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float
    rank_stabilised: bool = False

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return (self.up.shape[0], *self.down.shape[1:])

    def scaling(self, weight: float) -> float:
        """What up @ down is multiplied with. The order of the operations is peft's, which decides the last bit."""
        return weight * self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A checked adapter. `components` maps a component's name to its weights' changes, by the weight's name in it.

    `identity` is a hash of the bytes that it was read from, whatever the file is called.
    """

    path: Path
    identity: str
    components: Mapping[str, Mapping[str, LowRank]]

    @property
    def num_bytes(self) -> int:
        """Of all factors as stored."""
        changes = (change for weights in self.components.values() for change in weights.values())
        return sum(change.down.nbytes + change.up.nbytes for change in changes)


def few(names: Sequence[str], limit: int = 4) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
