"""Blocks whose forwards torch.compile made: `execution.compile`.

Compiled is one block at a time, and what is compiled is the block's forward alone. What brings its weights, gathers
them, keeps ranks in step or lets another request have its turn are hooks around it, which run as always; the weights
come in as inputs, so that blocks of one class share what was compiled, wherever their memory is.

With `true` a graph is made for each shape, and none for shapes in general, so that the bits of a picture are the same
whatever was made before it. With `dynamic` one graph serves all shapes, and prompts of any length: torch may still make
a second one for a shape that its first has no room for, and which of them serves a call depends on the calls before.
Where there are more graphs than `_GRAPHS`, torch would go on uncompiled without a word; here that is an error.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from runner.config import DYNAMIC
from runner.errors import UserError
from weights.blocks import find_units
from weights.overrides import moves_no_weights

# Of one block's code: shapes, times the strides and kinds of tensors that come in. torch's default is 8.
_GRAPHS = 256


class TooManyGraphs(RuntimeError):
    """A block met more shapes in one run than graphs are made for."""


def require_compiler(device: torch.device) -> None:
    """Raises UserError where torch cannot compile for this device: no compiler on the machine, no backend for it."""
    try:
        _compiled(lambda x: torch.sin(x) * 2)(torch.ones(8, device=device))
    except Exception as error:  # of any kind: whatever a compiler misses, it says in a type of its own
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"execution.compile: torch.compile does not work here for {device.type} ({first.strip()}); on a CPU it "
            "needs a C++ compiler (g++), on a GPU triton; or leave execution.compile unset"
        ) from error


def denoises(cls: type) -> bool:
    """Whether what a class computes is worth it: it is called at every step. Encoders and decoders run once."""
    return not issubclass(cls, PreTrainedModel) and not callable(getattr(cls, "decode", None))


def compile_blocks(module: nn.Module, how: bool | str) -> nn.Module:
    """Lay compiled forwards over those of the blocks; before anything that moves weights is laid around them. `how` as
    `execution.compile` says it: False leaves them as they are."""
    if not how:
        return module
    units = find_units(module)
    kept = {name: module.get_submodule(name) for name in units.kept_with_root}
    for block in (units.blocks | kept).values():
        vars(block)["forward"] = moves_no_weights(_compiled(block.forward, is_dynamic=how == DYNAMIC))
    return module


def is_compiled(module: nn.Module) -> bool:
    return any(hasattr(vars(inner).get("forward"), "is_compiled") for inner in module.modules())


def _compiled(forward: Callable[..., Any], *, is_dynamic: bool = False) -> Callable[..., Any]:
    torch._dynamo.config.recompile_limit = _GRAPHS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    made = torch.compile(forward, dynamic=is_dynamic)

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return made(*args, **kwargs)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise TooManyGraphs(
                f"execution.compile={'dynamic' if is_dynamic else 'true'}: a block was compiled for "
                f"{torch._dynamo.config.recompile_limit} shapes already; make requests of fewer sizes and prompt "
                "lengths in one run (job.part), or use dynamic, or false"
            ) from error

    call.__dict__["is_compiled"] = True
    return call
