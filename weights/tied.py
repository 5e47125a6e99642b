"""Every weight of a module once, by all the names it has there."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Weight:
    """A parameter or persistent buffer: its names, and every (module, attribute) that holds it.

    The first name is the one that `named_parameters` gives.
    """

    tensor: torch.Tensor
    names: tuple[str, ...]
    owners: tuple[tuple[nn.Module, str], ...]

    def replace(self, tensor: torch.Tensor) -> None:
        """Have every owner hold `tensor` instead: a parameter in a parameter's place, a buffer in a buffer's."""
        for module, attribute in self.owners:
            setattr(module, attribute, tensor)


def find_weights(module: nn.Module) -> list[Weight]:
    """In the order of the modules. A weight that two names are tied to is found once."""
    found: dict[int, list[tuple[str, nn.Module, str, torch.Tensor]]] = {}
    for prefix, inner in module.named_modules(remove_duplicate=False):
        for name, tensor in (*inner._parameters.items(), *inner._buffers.items()):
            if tensor is not None and name not in inner._non_persistent_buffers_set:
                qualified = f"{prefix}.{name}" if prefix else name
                found.setdefault(id(tensor), []).append((qualified, inner, name, tensor))
    return [
        Weight(places[0][3], tuple(p[0] for p in places), tuple(dict.fromkeys((p[1], p[2]) for p in places)))
        for places in found.values()
    ]


def tied_names(module: nn.Module) -> list[tuple[str, ...]]:
    """The names of each weight."""
    return [weight.names for weight in find_weights(module)]
