"""Adapters applied beside their layers: y = layer(x) + sum of scaling_i * up_i(down_i(x)), in the order and the dtypes
of peft's own layers, so that the bits are those of diffusers' `set_adapters`.

peft's layers themselves are not used, because they move weights: `to_q.weight` becomes `to_q.base_layer.weight`, and
the factors become parameters of the module, which sharding and offloading would have to know. A forward hook leaves the
module as it is: its parameters, their names, and who holds their memory.

[Note: scales of a call] Pipelines scale their adapters in mid-call: `joint_attention_kwargs={"scale": 0.5}` reaches
`scale_lora_layers(transformer, 0.5)` before each forward of the transformer and `unscale_lora_layers` after it, and the
same around a text encoder's calls. Both walk `model.modules()` and call `scale_layer` and `unscale_layer` on what is a
`peft.BaseTunerLayer`. So what runs beside a layer is one too: a child of the layer, without parameters. Whatever
pipeline scales whatever component, by whatever argument, finds it where it finds peft's, and no name of an argument or
of a model is known here. The arithmetic is peft's, undoing included: a scale is taken back by a division, which need
not give the number that was there before, and the next step multiplies what it gave.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lora.adapter import LowRank, Scaling, few
from lora.edits import Edits, Terms
from weights.modes import normal_mode

_CHILD = "beside"
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

# What the request in progress made of the scalings. Not kept on the layers: a division need not undo a multiplication,
# so what one request left behind would move the bits of the next; and requests that take turns in one thread, each in
# a context of its own, would scale each other.
_SCALED: ContextVar[dict["_Beside", list[Scaling]] | None] = ContextVar("_SCALED", default=None)


def forget_scales() -> None:
    """To be called where a request begins: all adapters count as they were set, whatever the last request left."""
    _SCALED.set({})


@dataclass(frozen=True)
class _Term:
    """The factors on the device, and what their product is multiplied with while nothing scales it further."""

    down: torch.Tensor
    up: torch.Tensor
    change: LowRank
    scaling: Scaling


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
        with normal_mode():
            terms = {name: self._on_device(name, terms) for name, terms in edits.terms.items()}
        for name in terms:
            if name not in self._layers:
                self._layers[name] = _Beside(self._layer(name))
        for name, layer in self._layers.items():
            layer.terms = terms.get(name, ())
        forget_scales()

    def close(self) -> None:
        """Take the hooks off and let go of the factors."""
        for name, layer in self._layers.items():
            layer.handle.remove()
            delattr(self._layer(name), _CHILD)
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
        return tuple(_Term(*self._factors[change], change, change.scaling(weight)) for change, weight in terms)


class _Beside(nn.Module, BaseTunerLayer):
    """What runs beside one layer: its hook, and what the libraries scale. See [Note: scales of a call]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.terms: tuple[_Term, ...] = ()
        self.handle = layer.register_forward_hook(self._add, with_kwargs=True)
        layer.add_module(_CHILD, self)

    @property
    def scalings(self) -> list[Scaling]:
        """Of each term, as the request in progress has scaled them."""
        scaled = (_SCALED.get() or {}).get(self)
        return [term.scaling for term in self.terms] if scaled is None else scaled

    @property
    def active_adapters(self) -> list[int]:
        """What `set_scale` takes for a name."""
        return list(range(len(self.terms)))

    def scale_layer(self, scale: float) -> None:
        if scale != 1:
            self._scale([scaling * scale for scaling in self.scalings])

    def unscale_layer(self, scale: float | None = None) -> None:
        if scale is None:
            self._scale([term.change.scaling(1.0) for term in self.terms])
        else:
            self._scale([scaling / scale for scaling in self.scalings])

    def set_scale(self, adapter: int, scale: float) -> None:
        """How the libraries undo a scale of zero: with the adapter's own scaling, so that they drop its weight."""
        scalings = list(self.scalings)
        scalings[adapter] = self.terms[adapter].change.scaling(scale)
        self._scale(scalings)

    def _scale(self, scalings: list[Scaling]) -> None:
        scaled = _SCALED.get()
        if scaled is None:  # in a context where no request has begun
            scaled = {}
            _SCALED.set(scaled)
        scaled[self] = scalings

    def _add(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: torch.Tensor
    ) -> torch.Tensor | None:
        if not self.terms:
            return None  # the layer's own output
        x = args[0] if args else kwargs["input"]
        dtype = output.dtype
        for term, scaling in zip(self.terms, self.scalings, strict=True):
            x = x.to(term.down.dtype)
            output = output + _low_rank(layer, x, term.down, term.up) * scaling
        return output.to(dtype)


def _low_rank(layer: nn.Module, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(F.linear(x, down), up)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    # The layer's own stride and padding, with `down` for its weight.
    hidden = layer._conv_forward(x, down, None)
    return _CONVOLUTIONS[up.ndim - 2](hidden, up)
