"""A result that is not there yet: a tensor of known shape, and the end of its round when its data is needed.

[Note: deferred results] A Deferred has a shape, a dtype and a device, but no memory. Python's functions on it come
through `__torch_function__`, and what slips past (a library's own C++) through `__torch_dispatch__`. What can be
answered or put off is in runner/rounds/glue.py; anything else ends the round. Then each Deferred *becomes* the plain
tensor, as an object, whoever holds it (`torch.utils.swap_tensors`), so that nothing downstream ever sees the class.

One thing cannot be seen: `plain.data = deferred` hands over memory that is not there, and crashes. No pipeline of
diffusers 0.42.1 does it; `assigns_data` looks, in the source of the one that is opened.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from runner.rounds.glue import Function, Need, Results, like, need_of
from runner.rounds.leaves import leaves_of, with_leaves
from runner.rounds.signature import Spec

_plainly = torch._C.DisableTorchFunctionSubclass
_GLUE = ("diffusers.pipelines.", "diffusers.modular_pipelines.", "diffusers.schedulers.")  # runs between calls
_VALUE = "value"  # of one that could not become its value, because C++ held on to it


class Pending(Protocol):
    """What a Deferred waits for: a round of calls."""

    def put_off(self, function: Function, args: Any, kwargs: Any, needs: Need) -> Any:
        """The function's own Deferred results, or NotImplemented where it has to run now."""

    def end(self, why: str) -> None:
        """Have all results there."""


class NeverCame(RuntimeError):
    """A result whose round ended with an error was used all the same."""


class CallFailed(RuntimeError):
    """A call that was put off raised TypeError: torch would take that for an operator that cannot be, and hide it."""


class Deferred(Tensor):
    """See [Note: deferred results]."""

    @staticmethod
    def __new__(cls, spec: Spec, pending: Pending) -> "Deferred":
        with _plainly():
            made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, spec.size, strides=spec.stride, dtype=spec.dtype, device=spec.device
            )
        made.__dict__["pending"] = pending
        return made

    @classmethod
    def __torch_function__(cls, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        need = need_of(func)
        if need is Need.NOTHING:
            with _plainly():
                return func(*args, **kwargs)
        if func is Tensor.__iter__:
            return iter(args[0].unbind(0))  # as torch's own does
        if (waits := next(_waiting((args, kwargs)), None)) is not None:
            pending: Pending = waits.__dict__["pending"]
            if need is Need.LIKENESS and args and args[0] is waits:
                return like(func, Spec.of(waits), args[1:], kwargs)
            if need in (Need.LATER, Need.LATER_WITH_OTHERS):
                results = pending.put_off(func, args, kwargs, need)
                if results is not NotImplemented:
                    return results
            _end(pending, getattr(func, "__name__", str(func)))
        with _plainly():
            return func(*there(args), **there(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for waits in _waiting((args, kwargs)):
            waits.__dict__["pending"].end(str(func))
        return func(*there(args), **there(kwargs))


def _end(pending: Pending, why: str) -> None:
    try:
        pending.end(why)
    except TypeError as error:
        raise CallFailed(f"TypeError: {error}") from error


def deferred_in(values: Any) -> list[Deferred]:
    """Those among the arguments of a call, there or not."""
    return [leaf for leaf in leaves_of(values) if type(leaf) is Deferred]


def _waiting(values: Any) -> Iterator[Deferred]:
    return (leaf for leaf in deferred_in(values) if _VALUE not in leaf.__dict__)


def there(values: Any) -> Any:
    """The same with plain tensors, once their round is over."""
    return with_leaves(_plain, values)


def _plain(leaf: Any) -> Any:
    if type(leaf) is not Deferred:
        return leaf
    if _VALUE not in leaf.__dict__:
        raise NeverCame("a component's result is used whose round ended with an error")
    return leaf.__dict__[_VALUE]


def become(deferred: Deferred, value: Tensor) -> None:
    """Turn the object into the plain tensor."""
    with _plainly():
        same = value.as_strided(value.shape, value.stride(), value.storage_offset())
        try:
            torch.utils.swap_tensors(deferred, same)
        except RuntimeError:
            deferred.__dict__[_VALUE] = value


class Later:
    """A function of the glue that was put off, with what it is called with, and its results."""

    def __init__(self, function: Function, args: Any, kwargs: Any, of: Results, pending: Pending) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs
        tree, specs = of
        self._deferred = [Deferred(spec, pending) for spec in specs]
        self.results = tree_unflatten(self._deferred, tree)

    def run(self) -> None:
        with _plainly():
            made = leaves_of(self._function(*there(self._args), **there(self._kwargs)))
        for deferred, value in zip(self._deferred, made, strict=True):
            become(deferred, value)


def assigns_data(*objects: Any) -> str | None:
    """Where the source of one of these objects' classes assigns a tensor's memory; None where none does."""
    for cls in dict.fromkeys(kind for one in objects for kind in type(one).__mro__):
        package = cls.__module__.partition(".")[0]
        is_glue = package == "diffusers" and cls.__module__.startswith(_GLUE)
        module = sys.modules.get(cls.__module__)
        if module is None or not (
            is_glue or package not in ("builtins", "diffusers", "torch", "collections", "typing")
        ):
            continue
        try:
            source = inspect.getsource(module)
        except (OSError, TypeError):  # made at run time, in a session: nothing to look at
            continue
        if found := re.search(r"^.*\.data\s*=(?!=).*$", source, re.MULTILINE):
            return f"{cls.__module__}: {found[0].strip()}"
    return None
