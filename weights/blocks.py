"""Which parts of a component are gathered together: its blocks one by one, and the root with all the rest."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from weights.outside_reads import outside_reads
from weights.tied import find_weights

T = TypeVar("T")


@dataclass(frozen=True)
class Units:
    """`lists`: the blocks of each outermost ModuleList, by qualified name, in order; each block is one FSDP unit.
    `kept_with_root`: blocks that are not units of their own, with the reason; the root gathers their weights."""

    lists: tuple[dict[str, nn.Module], ...]
    kept_with_root: dict[str, str]

    @property
    def blocks(self) -> dict[str, nn.Module]:
        return {name: block for blocks in self.lists for name, block in blocks.items()}


def find_units(root: nn.Module, entry_points: Iterable[str] = ("forward",)) -> Units:
    """Every element of the outermost ModuleLists that only its own forward reads.

    A block is kept with the root when code outside it reads its weights (`entry_points` are the root's methods that
    run), or when it shares a parameter with anything outside it: a tied weight must have one owner.
    """
    lists = list(_outermost_lists(root))
    names = {block: name for blocks in lists for name, block in blocks.items()}
    reads = outside_reads(root, names, entry_points)
    reasons = {names[block]: f"read from outside by {code}" for block, code in reads.items()}
    for name, parameter in _shared_parameters(root, names):
        reasons.setdefault(name, f"shares {parameter} with a module outside it")
    # `names` has one name a block, also where a block is in two lists.
    units = ({name: b for name, b in blocks.items() if names[b] == name and name not in reasons} for blocks in lists)
    return Units(tuple(blocks for blocks in units if blocks), reasons)


def spread(blocks: Sequence[T], count: int) -> list[T]:
    """`count` of the blocks at even distances, so that the rest's transfers find compute to hide behind."""
    if not 0 <= count <= len(blocks):
        raise ValueError(f"resident_blocks={count}, but there are {len(blocks)} blocks; choose 0 to {len(blocks)}")
    return [blocks[i * len(blocks) // count] for i in range(count)]


def _outermost_lists(module: nn.Module, prefix: str = "") -> Iterator[dict[str, nn.Module]]:
    """The blocks of each ModuleList that lies in no block. Containers without a forward (lists of lists, plain
    `nn.Module` holders) are no blocks: what they contain is."""
    if isinstance(module, nn.ModuleList):
        blocks = {f"{prefix}{i}": child for i, child in module.named_children() if _is_block(child)}
        if blocks:
            yield blocks
    for name, child in module.named_children():
        if not (isinstance(module, nn.ModuleList) and _is_block(child)):
            yield from _outermost_lists(child, f"{prefix}{name}.")


def _is_block(module: nn.Module) -> bool:
    has_forward = type(module).forward is not nn.Module.forward
    return has_forward and any(True for _ in module.parameters())


def _shared_parameters(root: nn.Module, blocks: dict[nn.Module, str]) -> Iterator[tuple[str, str]]:
    """(block, parameter) for each parameter of a block that another block, or what is outside all blocks, has too."""
    paths = {path: blocks[m] for path, m in root.named_modules(remove_duplicate=False) if m in blocks}
    for weight in find_weights(root):
        if isinstance(weight.tensor, nn.Parameter):
            holders = dict.fromkeys(_block_around(name, paths) for name in weight.names)
            if len(holders) > 1:
                yield from ((block, weight.names[0]) for block in holders if block is not None)


def _block_around(name: str, paths: Mapping[str, str]) -> str | None:
    """The block that holds the weight of this name, by the paths that lead to blocks."""
    while name := name.rpartition(".")[0]:
        if name in paths:
            return paths[name]
    return None
