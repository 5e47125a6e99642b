"""Why requests of a pipeline cannot be made together, where its calls change the models that all of them share.

While one request of a group is paused inside a model, another one's call of it begins. Most pipelines only read their
models. These do not (in diffusers 0.42.1): perturbed attention (PAG) exchanges attention processors for the time of a
call, SkyReels-V2 sets the window of its attention, some guiders put hooks on blocks for one of their branches, and the
caches of `enable_cache` keep a step's results in hooks, for one request at a time.
"""

import inspect
from collections.abc import Iterable
from typing import Any

from diffusers.guiders import BaseGuidance

from runner.components.component import Component

CHANGES = frozenset({"set_attn_processor", "_set_ar_attention"})  # methods of models


def why_alone(stock: Any, components: Iterable[Component]) -> str | None:
    """None where they can be made together."""
    if names := CHANGES & names_in_call(type(stock)):
        return f"{type(stock).__name__} calls {', '.join(sorted(names))} on a model"
    for name, part in stock.components.items():
        if isinstance(part, BaseGuidance) and type(part).prepare_models is not BaseGuidance.prepare_models:
            return f"the {name}, a {type(part).__name__}, changes the model for a part of its calls"
    for component in components:
        for inner in component.module.modules():
            for name, hook in getattr(getattr(inner, "_diffusers_hook", None), "hooks", {}).items():
                if hook._is_stateful:
                    return f"{component.name} keeps state of one request between its calls, in the hook {name}"
    return None


def names_in_call(pipeline: type) -> set[str]:
    """The attributes that the code of its call names."""
    code = getattr(inspect.unwrap(pipeline.__call__), "__code__", None)  # torch.no_grad wraps it
    return set() if code is None else set(code.co_names)
