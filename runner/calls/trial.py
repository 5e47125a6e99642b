"""A call of each component whose tokens ranks share out, made both ways on the loaded model: how far they differ."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from runner.calls.lockstep import Lockstep
from runner.calls.recorded import raw_bytes
from runner.components.component import Component
from runner.components.context import Context, context_of
from weights.agreement import gather
from weights.overrides import Overrides

# Root of the mean square of the difference, relative: what other orders of the same sums may move.
ALLOWED = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}


@dataclass(frozen=True)
class Parity:
    """How far a component's call differs where `ranks` share out its tokens; `error` where it cannot be compared."""

    component: str
    kind: str
    ranks: int
    allowed: float
    difference: float = 0.0
    error: str = ""

    @property
    def holds(self) -> bool:
        return not self.error and self.difference <= self.allowed

    def __str__(self) -> str:
        what = f"{self.component} ({self.kind}): a call whose tokens {self.ranks} ranks share out"
        if self.error:
            return f"{what} fails: {self.error}"
        judged = "at most" if self.holds else "more than"
        return f"{what} differs from a whole one by {self.difference:.2g}, {judged} the {self.allowed:.0e} of its dtype"


class Compared(Exception):
    """All components have been compared, or one failed: the request is not to go on."""


class Trial:
    """Laid over the calls of `components`, outermost, until `close`: the first call of each is made both ways. The
    request in which the last of them is compared ends with `Compared`, on all ranks that keep in step."""

    def __init__(self, components: Sequence[Component], lockstep: Lockstep) -> None:
        self.parities: list[Parity] = []
        self._lockstep = lockstep
        self._left = {component.name for component in components}
        self._overrides = Overrides()
        for component in components:
            inner, context = component.module._call_impl, context_of(component.module)
            assert context is not None
            call = functools.partial(self._call, component, context, inner)
            self._overrides.set(component.module, "_call_impl", call)

    def close(self) -> None:
        self._overrides.undo()

    def _call(
        self, component: Component, context: Context, inner: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if component.name not in self._left:
            return inner(*args, **kwargs)
        self._left.discard(component.name)
        with context.whole():
            whole = inner(*args, **kwargs)
        parity = self._parity(component, context, whole, functools.partial(inner, *args, **kwargs))
        self.parities.append(parity)
        if parity.error or not self._left:
            self._lockstep.inside = None  # of a call that failed: so did it on the ranks that were in it
            raise Compared
        return whole

    def _parity(self, component: Component, context: Context, whole: Any, shared: Callable[[], Any]) -> Parity:
        allowed = max(ALLOWED.get(parameter.dtype, 0.0) for parameter in component.module.parameters())
        parity = functools.partial(Parity, component.name, type(component.module).__name__, context.size, allowed)
        try:
            outputs = _tensors(shared())
        except Exception as error:  # of any kind: what a plan does not fit fails anywhere
            found, difference, digest = f"{type(error).__name__}: {error}", 0.0, ""
        else:
            found, difference, digest = "", _difference(_tensors(whole), outputs), _digest(outputs)
        ranks = gather((found, difference, digest), self._lockstep.group)
        errors = [error for error, _, _ in ranks if error]
        if not errors and len({digest for _, _, digest in ranks}) > 1:
            errors = ["its ranks have different bits"]
        return parity(max(difference for _, difference, _ in ranks), *errors[:1])


def _tensors(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def _difference(wanted: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> float:
    """Infinite where it is none: other shapes, NaN."""
    if [one.shape for one in wanted] != [one.shape for one in got]:
        return float("inf")
    squares = sum(float((a.float() - b.float()).square().sum()) for a, b in zip(wanted, got, strict=True))
    size = sum(float(one.float().square().sum()) for one in wanted)
    difference = (squares / size) ** 0.5 if size else squares
    return difference if difference == difference else float("inf")


def _digest(tensors: Sequence[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(raw_bytes(tensor) for tensor in tensors)).hexdigest()
