"""Which parts of a component are gathered together: its blocks one by one, and the root with all the rest."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from weights.outside_reads import outside_reads


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
    owners = Counter(_parameters_outside(root, blocks))
    for block in blocks:
        owners.update({id(parameter) for parameter in block.parameters()})
    for block, name in blocks.items():
        for parameter_name, parameter in block.named_parameters(prefix=name):
            if owners[id(parameter)] > 1:
                yield name, parameter_name


def _parameters_outside(root: nn.Module, blocks: dict[nn.Module, str]) -> set[int]:
    pending, found = [root], set[int]()
    while pending:
        module = pending.pop()
        if module not in blocks:
            found.update(id(parameter) for parameter in module.parameters(recurse=False))
            pending.extend(module.children())
    return found
