"""What stands in the live module for the weights of a unit: nothing, or views of the buffer that holds its bytes.

While weights rest in a store, `state_dict()` of the whole component gives the true ones. What would write weights, or
move or convert them, is refused, unless it would change nothing: pipelines call `vae.to(dtype)` to be sure of a dtype.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from offload.edits import Edit
from offload.placeholder import bring_back, describe, forget, send_away
from offload.ring import Slot
from offload.stores.packing import PackedTensor, views
from offload.stores.store import Store, fill_host
from weights.modes import normal_mode
from weights.overrides import Overrides
from weights.tied import Weight


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
        self._device = device
        for name, packed in self._packed():
            if packed.dtype not in self._placeholders:
                self._placeholders[packed.dtype] = torch.empty(0, dtype=packed.dtype, device=device)
            placeholder, old = self._placeholders[packed.dtype], self._tensors[name]
            if not torch._has_compatible_shallow_copy_type(old, placeholder):
                self._tensors[name] = _replace(self._weights[name], placeholder)
            describe(self._tensors[name], name, packed)
        self.unbind()

    def bind(self, slot: Slot) -> None:
        if self._packing is not None:
            for name, data in slot.weights(self.name, self._packing).items():
                bring_back(self._tensors[name], data)

    def unbind(self) -> None:
        """Idempotent, also where it was interrupted."""
        for name, packed in self._packed():
            send_away(self._tensors[name], self._placeholders[packed.dtype])

    def read(self, store: Store, edits: Mapping[str, Edit], device: torch.device) -> dict[str, torch.Tensor]:
        """The true weights by first name, each in memory of its own on `device`; edits are made on the offload's."""
        if self._packing is None:
            return {}
        host = torch.empty(self.num_bytes, dtype=torch.uint8)
        fill_host(store, self.name, host)
        weights = {}
        for name, base in views(self._packing, host).items():
            weights[name] = base.to(self._device if name in edits else device, copy=True)
            if name in edits:
                edits[name](weights[name])
                weights[name] = weights[name].to(device)
        return weights

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
    parameter = isinstance(weight.tensor, nn.Parameter)
    new = nn.Parameter(data, requires_grad=weight.tensor.requires_grad) if parameter else data.detach()
    weight.replace(new)
    return new


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


def guard_weights(
    module: nn.Module,
    units: Sequence[UnitWeights],
    read: Callable[[UnitWeights, torch.device], Mapping[str, torch.Tensor]],
    overrides: Overrides,
) -> list[RemovableHandle]:
    """Take over `state_dict` of `module`, and `load_state_dict`, `.to()` and its like, deepcopy of it and its parts."""

    def read_state(_: nn.Module, state: dict[str, Any], prefix: str, *__: object) -> None:
        with normal_mode():
            for unit in units:
                for first, tensor in read(unit, torch.device("cpu")).items():
                    state.update({prefix + name: tensor for name in unit.names_of(first)})

    handles = [module.register_state_dict_post_hook(read_state)]
    for inner in module.modules():
        handles.append(inner.register_load_state_dict_pre_hook(_refuse_loading))
        overrides.set(inner, "_apply", _changes_nothing(inner))
        overrides.set(inner, "__deepcopy__", _refuse_copying(inner))
    return handles


def _refuse_loading(module: nn.Module, *_: object) -> None:
    raise RuntimeError(f"{type(module).__name__} is offloaded: remove() the offload before loading other weights")


def _refuse_copying(module: nn.Module) -> Callable[[object], nn.Module]:
    def refuse(_: object) -> nn.Module:
        raise RuntimeError(f"{type(module).__name__} is offloaded: a deep copy would share its buffers; remove() first")

    return refuse


def _changes_nothing(module: nn.Module) -> Callable[..., nn.Module]:
    def apply(function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        kinds = {(t.dtype, t.device) for t in (*module.parameters(), *module.buffers())}
        with normal_mode():
            for dtype, device in kinds:
                probe = torch.zeros(2, 2, 2, 2, dtype=dtype, device=device)  # 4 dims: for memory formats
                result = function(probe)
                if (result.dtype, result.device, result.stride()) != (dtype, device, probe.stride()):
                    raise RuntimeError(
                        f"{type(module).__name__} is offloaded, {dtype} on {device}: its weights cannot be moved or "
                        "converted; load it as it should be, or remove() the offload first"
                    )
        return module

    return apply
