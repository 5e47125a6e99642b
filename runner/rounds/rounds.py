"""Calls of a request that do not depend on each other: side by side over its team's ranks, or in one pass on one rank.

[Note: rounds] A pipeline with guidance calls its denoiser several times a step, on the same latents: with the prompt,
without it, perturbed. Which calls these are no list of families says. A call's result is handed out before it is there
(runner/rounds/deferred.py), and the calls that the pipeline makes before it needs the first result are a round: they
cannot depend on each other. The rank of the place in the round makes the call, the others get its result when the round
ends; always the same rank for the same place, since a call of the step before may have left something behind there.

The first call of a kind is made by every rank, and tells what the next ones give (runner/rounds/learning.py). So is any
call of a component that draws random numbers, writes to its arguments, keeps state or has a stranger's hooks; and each
call where no round was ever wider than one, since nothing is gained there. What is known when a request begins stays as
it is for the request, but for what it learns itself: so that requests that take turns decide alike on all ranks.

Where several ranks share a component's weights, all of them make as many calls of it in a round, of the same blocks.
What is left over is made again, and its result dropped.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance

from runner.calls.stateful import why_stateful
from runner.components.component import METHODS, Component
from runner.rounds.deferred import assigns_data, deferred_in, there
from runner.rounds.learning import Knowledge
from runner.rounds.round import Compute, Round, Shared
from runner.rounds.round_figures import RoundFigures
from weights.overrides import Overrides


class Rounds:
    """Laid over the components' calls, inside a call log's and outside everything else; put on once.

    It does nothing but inside `request()`. Calls of encoders and denoisers may be a round. Any call of another
    component, and any other method, needs all results first.
    """

    def __init__(self, components: Sequence[Component], shared: Shared, stock: Any = None) -> None:
        """`stock`: the pipeline whose components they are. Where its code does what cannot be seen, every call of them
        is made as it comes."""
        self.shared, self.knowledge = shared, Knowledge()
        self._refused = assigns_data(stock, getattr(stock, "scheduler", None))
        self._changes_hooks = any(isinstance(one, BaseGuidance) for one in getattr(stock, "components", {}).values())
        self._overrides = Overrides()
        self._components = [one for one in components if _may_share(one, shared)]
        self._making: ContextVar[Round | None] = ContextVar("_making", default=None)
        self._is_in_call: ContextVar[bool] = ContextVar("_is_in_call", default=False)
        self._reasons: dict[str, str] = {}  # why calls of a component are made one by one, found on the live module
        for component in components:
            self._install(component)

    @property
    def figures(self) -> RoundFigures:
        return self.shared.figures

    @property
    def names(self) -> list[str]:
        """Of the components whose calls may be a round."""
        return [component.name for component in self._components]

    def why_alone(self) -> dict[str, str]:
        """By component, why no call of it may be another rank's, as the modules are now."""
        return {one.name: why for one in self._components if (why := self._why_alone(one)) is not None}

    def close(self) -> None:
        self._overrides.undo()

    @contextmanager
    def request(self, generator: torch.Generator | None = None) -> Iterator[None]:
        """Around the pipeline's own call."""
        round_ = Round(self.shared, self.knowledge.copy(), generator)
        self._making.set(round_)
        self._reasons = self.why_alone()
        try:
            yield
            round_.end("the end")
            self.knowledge.add(round_.known)
        except Exception:  # of any kind: what it found of a component holds for the next request
            self.knowledge.serial |= round_.known.serial
            raise
        finally:
            self._making.set(None)
            round_.abandon()

    def _why_alone(self, component: Component) -> str | None:
        return self._refused or why_stateful(component.module)

    def after(self, kept: Callable[[float | None], None]) -> None:
        """See `Round.after`."""
        round_ = self._making.get()
        if round_ is None:
            kept(None)
        else:
            round_.after(kept)

    def there(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of a call, with the results among them there."""
        round_ = self._making.get()
        if round_ is None or not deferred_in((args, kwargs)):
            return args, kwargs
        round_.end("an argument of a call that may be logged")
        return there(args), there(kwargs)

    def _install(self, component: Component) -> None:
        module = component.module
        may_share = any(component is one for one in self._components)
        around = (
            functools.partial(self._call, component) if may_share else functools.partial(self._end_first, component)
        )
        self._overrides.set(module, "_call_impl", functools.partial(around, module._call_impl))
        for name in METHODS:
            if callable(method := getattr(module, name, None)):
                ending = functools.partial(self._end_first, component, method)
                self._overrides.set(module, name, functools.update_wrapper(ending, method))

    def _call(self, component: Component, inner: Compute, /, *args: Any, **kwargs: Any) -> Any:
        round_ = self._making.get()
        if round_ is None or self._is_in_call.get():  # a call within a call belongs to the outer one
            return inner(*args, **kwargs)
        compute = functools.partial(self._inside, inner)
        reason = self._reasons.get(component.name)
        if self._changes_hooks and reason is None:  # a guider puts hooks on for one call, and takes them off after it
            reason = why_stateful(component.module)
        return round_.call(component, compute, args, kwargs, reason)

    def _end_first(self, component: Component, inner: Compute, /, *args: Any, **kwargs: Any) -> Any:
        if (round_ := self._making.get()) is not None and not self._is_in_call.get():
            round_.end(f"a call of {component.name}")
        return inner(*args, **kwargs)

    def _inside(self, inner: Compute, /, *args: Any, **kwargs: Any) -> Any:
        token = self._is_in_call.set(True)
        try:
            return inner(*args, **kwargs)
        finally:
            self._is_in_call.reset(token)


def _may_share(component: Component, shared: Shared) -> bool:
    """Autoencoders of video keep state on the module; and alone, calls share nothing but what moves."""
    return not callable(getattr(component.module, "decode", None)) and (
        shared.size > 1 or component.name in shared.moving
    )
