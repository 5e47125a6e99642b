"""Modules of one component that the pipeline's constructor also puts into another (Z-Image's ControlNet embeds with the
transformer's embedders): where the lender's weights move, the borrower gets weights of its own.

A borrowed module is called while its lender is not, when its weights may be away, or are slices. Read a second time
from the lender's files they are the same bits; they stay on the device, beside what the borrower's own placement says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

import offload
import sharding
from runner.components.load import empty
from runner.components.skeleton import checkpoint_of
from runner.components.source import Source
from weights.checkpoint import match_keys
from weights.header import StoredTensor
from weights.modes import normal_mode
from weights.tied import find_weights


@dataclass(frozen=True)
class Loan:
    """What the borrower has as its `attribute`, and the lender under a `name`."""

    borrower: str
    attribute: str
    lender: str
    name: str


def owners_of(modules: Mapping[str, nn.Module]) -> dict[int, tuple[str, str]]:
    """The component and the name in it of every module and parameter, by its id."""
    owners: dict[int, tuple[str, str]] = {}
    for component, module in modules.items():
        named: list[tuple[str, Any]] = [*module.named_modules(), *module.named_parameters()]
        owners |= {id(thing): (component, name) for name, thing in named if name}
    return owners


def find_loans(modules: Mapping[str, nn.Module], owners: Mapping[int, tuple[str, str]]) -> list[Loan]:
    """What components have directly, and belonged to another one before the constructor ran."""
    loans = []
    for borrower, module in modules.items():
        for attribute, thing in (*module._modules.items(), *module._parameters.items()):
            lender, name = owners.get(id(thing), (borrower, ""))
            if lender != borrower:
                loans.append(Loan(borrower, attribute, lender, name))
    return loans


def give_own(
    loan: Loan, modules: Mapping[str, nn.Module], source: Source, dtype: torch.dtype, device: torch.device
) -> bool:
    """Where the lender's weights move, have the borrower hold its own. `source` is the lender's. Raises FileError."""
    lender = modules[loan.lender]
    if not (sharding.is_sharded(lender) or offload.is_offloaded(lender)):
        return False
    dtype = getattr(torch, source.changes.dtype or "", dtype)
    with normal_mode():
        built = empty(source, dtype)
        weights = [w for w in find_weights(built) if any(f"{name}.".startswith(f"{loan.name}.") for name in w.names)]
        stored = match_keys(checkpoint_of(built, source), [weight.names for weight in find_weights(built)])
        by_name = {name: one for w, one in zip(find_weights(built), stored, strict=True) for name in w.names}
        for weight in weights:
            filled = _read(by_name[weight.names[0]]).to(device=device, dtype=weight.tensor.dtype)
            parameter = isinstance(weight.tensor, nn.Parameter)
            weight.replace(nn.Parameter(filled, weight.tensor.requires_grad) if parameter else filled)
        parent, _, attribute = loan.name.rpartition(".")
        own = getattr(built.get_submodule(parent), attribute)
        setattr(modules[loan.borrower], loan.attribute, own.to(device) if isinstance(own, nn.Module) else own)
    return True


def _read(stored: StoredTensor) -> torch.Tensor:
    """In memory of its own, as the allocator aligns it."""
    with safe_open(stored.file, framework="pt") as file:
        return file.get_tensor(stored.key).clone()
