"""What a failing call of a sharded component leaves behind: a clear error, and a component that can be called again."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.modules import module as module_source

from weights.overrides import Overrides


class OutsideRead(RuntimeError):
    """Weights of a block were read while they were sharded: by code outside the block's own forward."""


def guard_methods(root: nn.Module, names: Iterable[str]) -> None:
    """Wrap methods of `root` so that an error inside them resets FSDP's state and names a block read from outside.

    FSDP leaves its iteration state undefined when a forward raises; without the reset the next call fails too. Where
    several calls are inside at once (they take turns), the last one resets it: the others still read what is gathered.
    """
    calls = _Calls()
    for name in names:
        Overrides().set(root, name, _guarded(root, getattr(root, name), calls))


@dataclass
class _Calls:
    """Of a root's methods, in progress; and whether one of them failed."""

    inside: int = 0
    has_failed: bool = False


def _guarded(root: nn.Module, method: Callable[..., Any], calls: _Calls) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        assert isinstance(root, FSDPModule)
        calls.inside += 1
        try:
            return method(*args, **kwargs)
        except BaseException as error:
            calls.has_failed = True
            reader = _reader_of_sharded_weights(root, error) if isinstance(error, Exception) else None
            if reader is None:
                raise
            raise OutsideRead(
                f"{reader} of {type(root).__name__} is read from outside its block, while the block's weights are "
                "sharded; keep this component whole on every rank (replicate it) instead of sharding it"
            ) from error
        finally:
            calls.inside -= 1
            if calls.has_failed and not calls.inside:
                calls.has_failed = False
                root.reset_iter_state()

    return guarded


def _reader_of_sharded_weights(root: nn.Module, error: Exception) -> str | None:
    """Who ran into sharded weights: the innermost module on the error's stack whose own parameters are sharded, or
    the code that mixed a block's weight with ordinary tensors."""
    names = {module: name for name, module in root.named_modules()}
    reader: nn.Module | None = None
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        owner = frame.f_locals.get("self")
        # Only code of the modules themselves: `nn.Module`'s call may fail in a hook, before any weight is read.
        if isinstance(owner, nn.Module) and owner in names and frame.f_code.co_filename != module_source.__file__:
            reader = owner
        trace = trace.tb_next
    if reader is None:
        return None
    if any(isinstance(p, DTensor) for p in reader.parameters(recurse=False)):
        return names[reader]
    if isinstance(error, RuntimeError) and "mixed torch.Tensor and DTensor" in str(error):
        return f"a weight used by {names[reader] or 'the root'}"
    return None
