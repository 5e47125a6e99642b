"""The weights of one unit in the live module: away, or views of the buffer that holds the unit's bytes."""

from collections.abc import Sequence

import torch
from torch import nn

from offload.away import bring_back, describe, forget, send_away
from offload.copy_engine import fill_host
from offload.packing import PackedTensor, views
from offload.store import Store
from offload.units import Weight


class UnitWeights:
    """Parameters and persistent buffers keep their identity: what is bound, and let go of, is their memory.

    Raises ValueError where the store does not hold the weights as the module declares them.
    """

    def __init__(self, name: str, weights: Sequence[Weight], store: Store) -> None:
        _check(name, weights, store)
        self.name = name
        self._weights = {weight.names[0]: weight for weight in weights}
        self._tensors = {name: weight.tensor for name, weight in self._weights.items()}
        self._packing = store.packings[name] if weights else None
        self._placeholders: dict[torch.dtype, torch.Tensor] = {}

    @property
    def num_bytes(self) -> int:
        return self._packing.num_bytes if self._packing else 0

    def attach(self, device: torch.device) -> None:
        """Drop what the module holds. Weights that cannot change device in place (meta ones) become new objects."""
        for name, packed in self._packed():
            if packed.dtype not in self._placeholders:
                self._placeholders[packed.dtype] = torch.empty(0, dtype=packed.dtype, device=device)
            placeholder, old = self._placeholders[packed.dtype], self._tensors[name]
            if not torch._has_compatible_shallow_copy_type(old, placeholder):
                self._tensors[name] = _replace(self._weights[name], placeholder)
            describe(self._tensors[name], name, packed)
        self.unbind()

    def bind(self, buffer: torch.Tensor) -> None:
        if self._packing is not None:
            for name, data in views(self._packing, buffer).items():
                bring_back(self._tensors[name], data)

    def unbind(self) -> None:
        """Idempotent, also where it was interrupted."""
        for name, packed in self._packed():
            send_away(self._tensors[name], self._placeholders[packed.dtype])

    def read(self, store: Store, device: torch.device) -> dict[str, torch.Tensor]:
        """The true weights by first name, each in memory of its own."""
        if self._packing is None:
            return {}
        host = torch.empty(self.num_bytes, dtype=torch.uint8)
        fill_host(store, self.name, host)
        return {name: tensor.to(device, copy=True) for name, tensor in views(self._packing, host).items()}

    def names_of(self, name: str) -> tuple[str, ...]:
        """All names of the weight with this first name."""
        return self._weights[name].names

    def detach(self, tensors: dict[str, torch.Tensor]) -> None:
        """The opposite of attach: the weights are ordinary tensors again, with this memory."""
        for name, tensor in self._tensors.items():
            bring_back(tensor, tensors[name])
            forget(tensor)

    def _packed(self) -> list[tuple[str, PackedTensor]]:
        return list(self._packing.tensors.items()) if self._packing else []


def _replace(weight: Weight, data: torch.Tensor) -> torch.Tensor:
    if isinstance(weight.tensor, nn.Parameter):
        parameter = nn.Parameter(data, requires_grad=weight.tensor.requires_grad)
        for module, name in weight.owners:
            module._parameters[name] = parameter
        return parameter
    buffer = data.detach()
    for module, name in weight.owners:
        module._buffers[name] = buffer
    return buffer


def _check(unit: str, weights: Sequence[Weight], store: Store) -> None:
    stored = store.packings[unit].tensors if unit in store.packings else {}
    where = f"unit {unit!r}" if unit else "what is outside the blocks"
    names = {weight.names[0] for weight in weights}
    if differing := sorted(names ^ set(stored)):
        side = "the module" if differing[0] in names else "the store"
        raise ValueError(f"{where}: only {side} has {differing[0]}; make the store from plan_units of this module")
    for weight in weights:
        packed = stored[weight.names[0]]
        if (tuple(weight.tensor.shape), weight.tensor.dtype) != (packed.shape, packed.dtype):
            raise ValueError(
                f"{weight.names[0]} is {tuple(weight.tensor.shape)} {weight.tensor.dtype} in the module and "
                f"{packed.shape} {packed.dtype} in the store"
            )
