"""Which weights of a component travel together: each block is a unit, and "" is all that is outside the blocks."""

from collections.abc import Iterable

import torch
from torch import nn

from weights.blocks import find_units
from weights.tied import Weight, find_weights

OUTSIDE = ""  # the unit of all that is in no block
BUFFERS = "buffers"  # the unit of the persistent buffers in no block, where there are any
ENTRY_POINTS = ("forward", "encode", "decode")  # what pipelines call on components


def plan_units(module: nn.Module, entry_points: Iterable[str] = ENTRY_POINTS) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of a component (parameters and persistent buffers, real or meta) by unit and qualified name.

    Units are the blocks of the outermost ModuleLists in the order of their declaration, then "", which is there also
    where it is empty, then "buffers" for the buffers outside the blocks, if there are any: they are small, and
    pipelines read them outside of the component's stage (`vae.latents_mean`), so they never leave the device. A weight
    with several names is listed under its first one; a weight that more than one block has, and a block that is read
    from outside itself, are in "". The same for every window and every number of resident blocks, so that one store
    serves them all.
    """
    blocks = find_blocks(module, entry_points)
    units = weights_of(module, blocks)
    return {unit: {weight.names[0]: weight.tensor for weight in weights} for unit, weights in units.items()}


def find_aliases(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """The other names of each tied weight, by the name that `plan_units` lists it under: a file may use any of them."""
    return {weight.names[0]: weight.names[1:] for weight in find_weights(module) if len(weight.names) > 1}


def find_blocks(module: nn.Module, entry_points: Iterable[str] = ENTRY_POINTS) -> dict[str, nn.Module]:
    methods = [name for name in entry_points if callable(getattr(type(module), name, None))]
    return find_units(module, methods).blocks


def weights_of(module: nn.Module, blocks: dict[str, nn.Module]) -> dict[str, list[Weight]]:
    """The weights of each unit: of the blocks as they are given, then of "", then of "buffers" if there are any."""
    units_of: dict[nn.Module, set[str]] = {inner: set() for inner in module.modules()}
    for name, block in blocks.items():
        for inner in block.modules():
            units_of[inner].add(name)
    units: dict[str, list[Weight]] = {unit: [] for unit in (*blocks, OUTSIDE)}
    for weight in find_weights(module):
        outside = OUTSIDE if isinstance(weight.tensor, nn.Parameter) else BUFFERS
        holders = {unit for owner, _ in weight.owners for unit in (units_of[owner] or {outside})}
        units.setdefault(holders.pop() if len(holders) == 1 else outside, []).append(weight)
    return units
