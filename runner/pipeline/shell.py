"""A pipeline of a request's own, over components that all requests share."""

import copy
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.configuration_utils import ConfigMixin
from diffusers.guiders import BaseGuidance
from torch import nn


def with_own_guiders(stock: Any) -> Any:
    """For a request that is made by itself. A guider keeps the step that it is at, and some an average over the steps:
    what one request leaves behind would be the next one's start. A scheduler is set anew by each call."""
    guiders = {name: copy.deepcopy(part) for name, part in vars(stock).items() if isinstance(part, BaseGuidance)}
    if not guiders:
        return stock
    shell = copy.copy(stock)
    vars(shell).update(guiders)
    return shell


def own_shell(stock: Any) -> Any:
    """A copy of `stock` that shares its modules, and has all that a call changes for itself.

    That is what the pipeline notes on itself (`_guidance_scale`, the steps done), and the parts that keep a call's
    state without weights: schedulers, guiders. Tokenizers and processors are shared: a call sets them anew.
    """
    return _shell(stock, {})


def _shell(stock: Any, copied: dict[int, Any]) -> Any:
    """`copied`: by the id of each part that is copied already; a scheduler may be held under two names."""
    shell = copy.copy(stock)
    for name, part in vars(stock).items():
        if isinstance(part, nn.Module):
            continue
        if isinstance(part, DiffusionPipeline):  # a pipeline of pipelines
            copied.setdefault(id(part), part if part is stock else _shell(part, copied))
        elif isinstance(part, ConfigMixin):
            copied.setdefault(id(part), copy.deepcopy(part))
        elif type(part) in (list, dict, set):
            copied.setdefault(id(part), copy.copy(part))
        else:
            continue
        vars(shell)[name] = copied[id(part)]
    return shell
