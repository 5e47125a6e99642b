"""A small model whose blocks run in any order, one inside another, or fail half-way."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

DIM = 8


class Block(nn.Module):
    """`inside` runs between its two layers, while its weights are in use."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(DIM, hidden)
        self.down = nn.Linear(hidden, DIM)
        self.register_buffer("scale", torch.rand(()) + 0.5)
        self.register_buffer("shift", torch.rand(DIM), persistent=False)

    def forward(self, x: torch.Tensor, inside: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
        hidden = self.up(x).tanh()
        if inside is not None:
            x = inside(x)
        return x + self.down(hidden) * self.scale + self.shift


class Stack(nn.Module):
    """Calls `order` of its blocks; a list in it is a block with the next ones inside it: [0, 1] is block 0 around 1."""

    def __init__(self, num_blocks: int = 5, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(DIM, DIM)
        self.register_buffer("mean", torch.rand(DIM))
        self.blocks = nn.ModuleList(Block(16 + 8 * (i % 2)) for i in range(num_blocks))
        self.head = nn.Linear(DIM, DIM)
        self.eval()

    def forward(self, x: torch.Tensor, order: Iterable[int | Sequence[int]] | None = None) -> torch.Tensor:
        x = self.embed(x) - self.mean
        for item in range(len(self.blocks)) if order is None else order:
            x = self.run(x, [item] if isinstance(item, int) else item)
        return self.head(x)

    def run(self, x: torch.Tensor, nested: Sequence[int]) -> torch.Tensor:
        if nested[0] < 0:
            raise RuntimeError("half-way")
        block = self.blocks[nested[0]]
        return block(x) if len(nested) == 1 else block(x, lambda inner: self.run(inner, nested[1:]))


def example(batch: int = 3) -> torch.Tensor:
    return torch.linspace(-1, 1, batch * DIM).view(batch, DIM)
