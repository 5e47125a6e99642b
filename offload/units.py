"""Which weights of a component travel together: each block is a unit, and "" is all that is outside the blocks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from weights.blocks import find_units

OUTSIDE = ""  # the unit of all that is in no block
BUFFERS = "buffers"  # the unit of the persistent buffers in no block, where there are any
ENTRY_POINTS = ("forward", "encode", "decode")  # what pipelines call on components


@dataclass(frozen=True)
class Weight:
    """A parameter or persistent buffer: the unit it travels in, and every (module, attribute) that is tied to it.

    `names` are its names in the component, the first being the one that `named_parameters` gives.
    """

    tensor: torch.Tensor
    names: tuple[str, ...]
    owners: tuple[tuple[nn.Module, str], ...]
    unit: str


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
    plan: dict[str, dict[str, torch.Tensor]] = {unit: {} for unit in (*blocks, OUTSIDE)}
    for weight in find_weights(module, blocks):
        plan.setdefault(weight.unit, {})[weight.names[0]] = weight.tensor
    return plan


def find_aliases(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """The other names of each tied weight, by the name that `plan_units` lists it under: a file may use any of them."""
    return {weight.names[0]: weight.names[1:] for weight in find_weights(module, {}) if len(weight.names) > 1}


def find_blocks(module: nn.Module, entry_points: Iterable[str] = ENTRY_POINTS) -> dict[str, nn.Module]:
    methods = [name for name in entry_points if callable(getattr(type(module), name, None))]
    return find_units(module, methods).blocks


def find_weights(module: nn.Module, blocks: dict[str, nn.Module]) -> list[Weight]:
    units_of: dict[nn.Module, set[str]] = {inner: set() for inner in module.modules()}
    for name, block in blocks.items():
        for inner in block.modules():
            units_of[inner].add(name)
    found: dict[int, list[tuple[str, nn.Module, str, torch.Tensor]]] = {}
    for prefix, inner in module.named_modules(remove_duplicate=False):
        for name, tensor in (*inner._parameters.items(), *inner._buffers.items()):
            if tensor is not None and name not in inner._non_persistent_buffers_set:
                qualified = f"{prefix}.{name}" if prefix else name
                found.setdefault(id(tensor), []).append((qualified, inner, name, tensor))
    weights = []
    for places in found.values():
        names, owners = tuple(p[0] for p in places), tuple(dict.fromkeys((p[1], p[2]) for p in places))
        outside = OUTSIDE if isinstance(places[0][3], nn.Parameter) else BUFFERS
        units = {unit for owner, _ in owners for unit in (units_of[owner] or {outside})}
        weights.append(Weight(places[0][3], names, owners, units.pop() if len(units) == 1 else outside))
    return weights


def spread(blocks: Sequence[str], count: int) -> set[str]:
    """`count` of the blocks at even distances, so that the rest's transfers find compute to hide behind."""
    if not 0 <= count <= len(blocks):
        raise ValueError(f"resident_blocks={count}, but there are {len(blocks)} blocks; choose 0 to {len(blocks)}")
    return {blocks[i * len(blocks) // count] for i in range(count)}
