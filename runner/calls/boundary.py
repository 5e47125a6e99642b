"""The boundary around each component call: it enters the component's mode, keeps the ranks in step, and takes time."""

import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from runner.calls.finite import require_finite
from runner.calls.lockstep import Lockstep
from runner.components.component import METHODS, Component, look_ahead
from runner.components.resolver import Decision, ExecutionMode, enter


@dataclass
class Timings:
    """Seconds and calls by stage; `current` is the last stage and component entered, for error reports."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    current: tuple[str, str] | None = None

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.calls[stage] = self.calls.get(stage, 0) + 1


@contextmanager
def boundaries(
    components: Sequence[Component],
    decisions: Mapping[str, Decision],
    device_type: str,
    timings: Timings,
    lockstep: Lockstep,
) -> Iterator[None]:
    """While open, every call of a component enters the component's mode, in step with the other ranks.

    A call is watched through module hooks, outermost (FSDP gathers weights in hooks of its own, which must run in the
    component's mode too); methods are wrapped on the instance. When a call begins another stage, and at the end, the
    weights that the components of the last stage brought up are put down; the first blocks of the next stage come up
    before it begins, where that raises no peak. `module.to`, which some pipelines call in
    mid-flight, runs in normal mode: weights converted in inference mode would stay inference tensors for ever.

    On an accelerator the seconds are the host's: work is queued, not awaited.
    """
    calls = _Calls(components, decisions, device_type, timings, lockstep)
    with ExitStack() as undo:
        undo.callback(calls.end)
        for component in components:
            module = component.module
            before = module.register_forward_pre_hook(functools.partial(calls.before, component), prepend=True)
            undo.callback(before.remove)
            after = module.register_forward_hook(functools.partial(calls.after, component), always_call=True)
            undo.callback(after.remove)
            for name in METHODS:
                if callable(getattr(type(module), name, None)):
                    undo.callback(_replace(module, name, calls.wrapped(component, name)))
            undo.callback(_replace(module, "to", _in_normal_mode(module.to, device_type)))
        yield


class _Calls:
    """The component calls in progress, innermost last, and the components that may have weights up."""

    def __init__(
        self,
        components: Sequence[Component],
        decisions: Mapping[str, Decision],
        device_type: str,
        timings: Timings,
        lockstep: Lockstep,
    ) -> None:
        self.ahead = look_ahead(components)
        self.decisions, self.device_type, self.timings, self.lockstep = decisions, device_type, timings, lockstep
        self.open: list[tuple[nn.Module, ExitStack]] = []
        self.stage: str | None = None
        self.up: dict[str, Component] = {}

    def before(self, component: Component, *_: Any) -> None:
        self._begin(component, component.stage, "forward")

    def after(self, component: Component, *_: Any) -> None:
        # torch runs this hook also where `before` raised and opened nothing.
        if self.open and self.open[-1][0] is component.module:
            self.open.pop()[1].close()
        if not self.open and sys.exception() is None:
            self.lockstep.inside = None

    def wrapped(self, component: Component, name: str) -> Callable[..., Any]:
        method = getattr(component.module, name)
        stage = "encode" if name == "encode" else component.stage

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "decode":
                self.timings.current = (stage, component.name)
                require_finite("latents", (args, kwargs))  # before the ranks meet, so that one may leave
            self._begin(component, stage, name)
            try:
                output = method(*args, **kwargs)
            finally:
                self.after(component)
            if name == "decode":
                require_finite("pixels", output)
            return output

        return call

    def end(self) -> None:
        """Close what an interrupt left open, and put every component's weights down."""
        while self.open:
            self.open.pop()[1].close()
        self._put_down(except_in=None)

    def _begin(self, component: Component, stage: str, entry: str) -> None:
        if not self.open:  # a call within a call belongs to the outer one
            self.timings.current = (stage, component.name)
            if component.is_sharded:
                place = f"{stage}/{component.name}.{entry}"
                self.lockstep.meet(place)
                self.lockstep.inside = place
            if stage != self.stage:
                self._put_down(except_in=stage)
                self.stage = stage
            self.up[component.name] = component
            if (following := self.ahead.get(component.name)) is not None:
                following.bring_up_head()
                self.up[following.name] = following
        mode = self.decisions[component.name].mode
        with ExitStack() as stack:
            if not self.open:
                stack.callback(self._take_time, stage, time.perf_counter())
            stack.enter_context(enter(mode, self.device_type))
            stack.enter_context(_named_range(f"{stage}/{component.name}"))
            self.open.append((component.module, stack.pop_all()))

    def _take_time(self, stage: str, start: float) -> None:
        self.timings.add(stage, time.perf_counter() - start)

    def _put_down(self, except_in: str | None) -> None:
        with enter(ExecutionMode.NORMAL, self.device_type):
            for name, component in list(self.up.items()):
                if except_in is None or component.stage != except_in:
                    component.put_down()
                    del self.up[name]


def _replace(module: nn.Module, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Set an attribute of the instance; the result puts back what was there (sharding wraps methods too)."""
    undo = (
        functools.partial(setattr, module, name, vars(module)[name])
        if name in vars(module)
        else functools.partial(delattr, module, name)
    )
    setattr(module, name, function)
    return undo


def _in_normal_mode(function: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with enter(ExecutionMode.NORMAL, device_type):
            return function(*args, **kwargs)

    return call


def _named_range(name: str) -> AbstractContextManager[Any]:
    # The profiler's range costs microseconds a call, so only a running profiler gets one.
    return torch.profiler.record_function(name) if torch.autograd._profiler_enabled() else nullcontext()
