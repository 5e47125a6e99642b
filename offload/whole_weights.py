"""What the methods of `nn.Module` that take all weights at once do while the weights rest in a store.

`state_dict()` of the whole component gives the true weights. What would write weights, or move or convert them, is
refused, unless it would change nothing: pipelines call `vae.to(dtype)` to make sure of a dtype.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from offload.normal_mode import normal_mode
from offload.overrides import Overrides
from offload.store import Store
from offload.unit_weights import UnitWeights


def guard_weights(
    module: nn.Module, units: Sequence[UnitWeights], store: Store, overrides: Overrides
) -> list[RemovableHandle]:
    """Take over `state_dict` of `module`, and `load_state_dict`, `.to()` and its like, deepcopy of it and its parts."""

    def read_state(_: nn.Module, state: dict[str, Any], prefix: str, *__: object) -> None:
        with normal_mode():
            for unit in units:
                for first, tensor in unit.read(store, torch.device("cpu")).items():
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
