"""Adapters applied beside their layers: y = layer(x) + sum of scaling_i * up_i(down_i(x)), in the order and the dtypes
of peft's own layers, so that the bits are those of diffusers' `set_adapters`.

peft's layers themselves are not used, because they move weights: `to_q.weight` becomes `to_q.base_layer.weight`, and
the factors become parameters of the module, which sharding and offloading would have to know. A forward hook leaves the
module as it is: its names, its parameters, and who holds their memory.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lora.adapter import LowRank, few
from lora.edits import Edits, Terms

_Term = tuple[torch.Tensor, torch.Tensor, float]
"""down, up, scaling"""

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class BesideLayers:
    """The layers of one module that adapters run beside, and the factors on the device.

    A layer gets its hook when an adapter first needs it, and the factors are copied to the device, in the layer's
    dtype, when they are first active; later changes only swap tuples. Every rank holds all factors of its adapters,
    also beside sharded weights: two thin matrices a layer.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._module = module
        self._device = device
        self._layers: dict[str, _Beside] = {}
        self._factors: dict[LowRank, tuple[torch.Tensor, torch.Tensor]] = {}

    def set(self, edits: Edits) -> None:
        """Apply these edits from the next call on. May be called in any mode; all or nothing.

        Raises RuntimeError for a layer that is never called, because its weight goes straight into a function.
        """
        bypassed = [n for n in edits.terms if isinstance(self._layer(n), NonDynamicallyQuantizableLinear)]
        if bypassed:
            raise RuntimeError(f"{few(bypassed)}: the weight is read past its layer; merge this adapter instead")
        with torch.inference_mode(False), torch.no_grad():
            terms = {name: self._on_device(name, terms) for name, terms in edits.terms.items()}
        for name in terms:
            if name not in self._layers:
                self._layers[name] = _Beside(self._layer(name))
        for name, layer in self._layers.items():
            layer.terms = terms.get(name, ())

    def close(self) -> None:
        """Take the hooks off and let go of the factors."""
        for layer in self._layers.values():
            layer.handle.remove()
        self._layers.clear()
        self._factors.clear()

    @property
    def device_bytes(self) -> int:
        """Of the factors on the device."""
        return sum(down.nbytes + up.nbytes for down, up in self._factors.values())

    def _layer(self, name: str) -> nn.Module:
        return self._module.get_submodule(name.removesuffix(".weight"))

    def _on_device(self, name: str, terms: Terms) -> tuple[_Term, ...]:
        dtype = self._module.get_parameter(name).dtype
        for change, _ in terms:
            if change not in self._factors:
                # Contiguous: stored factors need not be, and kernels differ in the last bit.
                down, up = (f.to(self._device, dtype).contiguous() for f in (change.down, change.up))
                self._factors[change] = (down, up)
        return tuple((*self._factors[change], change.scaling(weight)) for change, weight in terms)


class _Beside:
    """The hook of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        self.terms: tuple[_Term, ...] = ()
        self.handle = layer.register_forward_hook(self._add, with_kwargs=True)

    def _add(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: torch.Tensor
    ) -> torch.Tensor | None:
        if not self.terms:
            return None  # the layer's own output
        x = args[0] if args else kwargs["input"]
        dtype = output.dtype
        for down, up, scaling in self.terms:
            x = x.to(down.dtype)
            output = output + _low_rank(layer, x, down, up) * scaling
        return output.to(dtype)


def _low_rank(layer: nn.Module, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(F.linear(x, down), up)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    # The layer's own stride and padding, with `down` for its weight.
    hidden = layer._conv_forward(x, down, None)
    return _CONVOLUTIONS[up.ndim - 2](hidden, up)
