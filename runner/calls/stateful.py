"""Components that keep something from one call to the next: a log of their results cannot stand for their calls.

In diffusers 0.42.1 such state is held by stateful hooks (the caches of `enable_cache`), or handed in and out as
arguments (caches of keys and values, see recorded.py); what a transformer's `forward` writes to itself are tables that
its first call sets up. What is there is found on the live module all the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from offload.placeholder import is_described

_OURS = frozenset(
    {"torch", "weights", "sharding", "offload", "lora", "runner"}
)  # whose hooks keep nothing between calls
# Where transformers records hidden states: in a context variable, and for the length of a call.
_RECORDS = "transformers.utils.output_capturing"
_OWN = frozenset(vars(nn.Module()))  # what every module has: hooks, parameters, flags
_KEEPS = (torch.Tensor, list, dict, set)


def why_stateful(module: nn.Module) -> str | None:
    """What keeps state between the calls of `module`; None where nothing does that can be seen before a call."""
    for inner in module.modules():
        where = type(inner).__name__
        for name, hook in getattr(getattr(inner, "_diffusers_hook", None), "hooks", {}).items():
            if hook._is_stateful:
                return f"the hook {name} on a {where}"
        if hasattr(inner, "_hf_hook"):
            return f"accelerate's {type(inner._hf_hook).__name__} on a {where}"
        for foreign in (*inner._forward_pre_hooks.values(), *inner._forward_hooks.values()):
            if not _keeps_nothing(foreign):
                return f"the hook {getattr(foreign, '__qualname__', foreign)} on a {where}"
    return None


def _keeps_nothing(hook: Any) -> bool:
    hook = getattr(hook, "func", hook)  # functools.partial
    hook = getattr(hook, "__func__", hook)
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return module == _RECORDS or module.partition(".")[0] in _OURS


@dataclass(frozen=True)
class Held:
    """A tensor or a container that a module holds. The object itself, not its id, which another may have after it."""

    value: object
    writes: int
    is_buffer: bool


State = Mapping[tuple[int, str], Held]


def state_of(module: nn.Module) -> State:
    """What `module` and those inside it hold besides parameters, by the number of the module and the name."""
    held: dict[tuple[int, str], Held] = {}
    for index, inner in enumerate(module.modules()):
        own = vars(inner)
        for name in own.keys() - _OWN:
            if isinstance(own[name], _KEEPS):
                held[index, name] = Held(own[name], _writes(own[name]), is_buffer=False)
        for name, buffer in inner._buffers.items():
            held[index, name] = Held(buffer, _writes(buffer), is_buffer=True)
    return held


def what_changed(before: State, after: State) -> str | None:
    """The name of something that a call replaced or wrote, if there is any. A buffer may be replaced: those of an
    offloaded block come and go with its weights."""
    for place, now in after.items():
        then = before.get(place)
        if then is not None and then.value is now.value:
            if then.writes != now.writes:
                return place[1]
        elif not now.is_buffer:
            return place[1]
    return None


def _writes(value: Any) -> int:
    """How often a tensor was written, as far as it counts that; how much a container holds."""
    if isinstance(value, torch.Tensor):
        # What a call writes to one that an offloader moves goes with its memory; and it cannot be read while away.
        return 0 if value.is_inference() or is_described(value) else value._version
    return 0 if value is None else len(value)
