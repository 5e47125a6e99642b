"""The boundary around each component call: it enters the component's mode, keeps the ranks in step, and takes time."""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from runner.calls.finite import require_finite
from runner.calls.generation import generate_in_step
from runner.calls.lockstep import Lockstep
from runner.calls.steps import Steps
from runner.calls.turns import this_turn
from runner.components.component import METHODS, Component
from runner.components.look_ahead import look_ahead
from runner.components.resolver import Decision, enter
from runner.progress import Progress
from runner.trace.interval import Lane
from runner.trace.recorder import Recorder
from weights.modes import normal_mode
from weights.overrides import Overrides, moves_no_weights


class Boundaries:
    """Hooks on every component of a pipeline, put on once; they do nothing but inside `group()` and `request()`.
    `steps` counts those of the request that is being made.

    There, every call of a component enters the component's mode, in step with the other ranks. When a call begins
    another stage, and at the end, the weights that the components of the last stage brought up are released; the first
    blocks of the next stage may come up before it begins (`look_ahead`). `module.to`, which some pipelines call in
    mid-flight, runs in normal mode: weights converted in inference mode would stay inference tensors for ever.

    A call is watched through module hooks, outermost, because FSDP gathers weights in hooks of its own, which must run
    in the component's mode too. Methods are wrapped on the instance.
    """

    def __init__(
        self,
        components: Sequence[Component],
        decisions: Mapping[str, Decision],
        device_type: str,
        lockstep: Lockstep,
        progress: Progress,
        recorder: Recorder | None = None,
        steps: Steps | None = None,
    ) -> None:
        self.decisions = decisions
        self._recorder, self._steps = recorder or Recorder(), steps
        self._device_type, self._lockstep, self._progress = device_type, lockstep, progress
        ahead = look_ahead([component.moves for component in components])
        self._ahead = {components[last].name: components[first] for last, first in ahead.items()}
        self._together = {component.name for component in components if component.is_called_together}
        self._overrides = Overrides()
        self._handles: list[Any] = []
        # Of the request that is being made, in its context: the calls in progress, the innermost last.
        self._calls: ContextVar[list[tuple[nn.Module, ExitStack]] | None] = ContextVar("_calls", default=None)
        # Of all requests that are being made together:
        self._stage: str | None = None
        self._up: dict[str, Component] = {}  # may have weights up
        self._whole: set[str] = set()  # brought up by the call of a part
        for component in components:
            self._install(component)

    @contextmanager
    def group(self) -> Iterator[None]:
        """Around the calls of requests that share what comes up; what is up in the end is released."""
        self._stage = None
        try:
            yield
        finally:
            self._recorder.enter_stage(None)
            self._release(except_in=None)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around the pipeline's own call, for one request of a group."""
        calls: list[tuple[nn.Module, ExitStack]] = []
        self._calls.set(calls)
        try:
            yield
        finally:
            self._calls.set(None)
            while calls:  # an interrupt left them
                calls.pop()[1].close()

    def close(self) -> None:
        """Take everything off the modules again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._overrides.undo()

    def _install(self, component: Component) -> None:
        module = component.module
        self._recorder.know(component.name, component.stage)
        before = moves_no_weights(functools.partial(self._before, component))
        after = moves_no_weights(functools.partial(self._after, component))
        self._handles += [
            module.register_forward_pre_hook(before, prepend=True),
            module.register_forward_hook(after, always_call=True),
        ]
        for part in component.parts:
            hook = functools.partial(self._before_part, component)
            self._handles.append(part.register_forward_pre_hook(hook, prepend=True))
        for name in METHODS:
            if callable(getattr(type(module), name, None)):
                self._overrides.set(module, name, self._around_method(component, name))
        self._overrides.set(module, "to", normal_mode()(module.to))
        if component.is_sharded:
            generate_in_step(module, self._lockstep, self._overrides)

    def _before(self, component: Component, *_: Any) -> None:
        if self._calls.get() is not None:
            self._begin(component, component.stage, "forward")

    def _after(self, component: Component, *_: Any) -> None:
        # torch runs this hook also where `_before` raised and opened nothing.
        calls = self._calls.get()
        if not calls:
            return
        if calls[-1][0] is component.module:
            calls.pop()[1].close()
        if not calls and (turn := this_turn()) is not None:
            turn.server.after_call(turn)
        if not calls and sys.exception() is None:
            self._lockstep.inside = None

    def _before_part(self, component: Component, *_: Any) -> None:
        """Some pipelines call the parts of a component one by one, past its own call, which brings their weights up:
        Ideogram 4 those of its text encoder. Then the first part does, in step as a call is."""
        if self._calls.get() == [] and component.name not in self._whole:
            self._begin(component, component.stage, "part")
            try:
                component.bring_up()
                self._whole.add(component.name)
            finally:
                self._after(component)

    def _around_method(self, component: Component, name: str) -> Callable[..., Any]:
        method = getattr(component.module, name)
        stage = "encode" if name == "encode" else component.stage

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._calls.get() is None:
                return method(*args, **kwargs)
            if name == "decode":
                self._progress.doing(stage, component.name)
                require_finite("latents", (args, kwargs))  # before the ranks meet, so that one may leave
            self._begin(component, stage, name)
            try:
                output = method(*args, **kwargs)
            finally:
                self._after(component)
            if name == "decode":
                require_finite("pixels", output)
            return output

        return call

    def _begin(self, component: Component, stage: str, entry: str) -> None:
        calls = self._calls.get()
        assert calls is not None
        with ExitStack() as stack:
            if not calls:  # a call within a call belongs to the outer one
                self._progress.calling(stage, component.name)
                self._wait_for_others(component, stage, f"{stage}/{component.name}.{entry}")
                self._enter_stage(stage, component)
                stack.enter_context(self._recorder.component(component.name, stage, self._step(stage)))
            stack.enter_context(enter(self.decisions[component.name].mode, self._device_type))
            calls.append((component.module, stack.pop_all()))

    def _wait_for_others(self, component: Component, stage: str, place: str) -> None:
        """For requests that take turns with this one, and for ranks that share the component's weights or tokens."""
        if (turn := this_turn()) is not None:
            turn.server.at_call(turn, stage, component.name, place)
        elif component.name in self._together:
            with self._recorder.range("meet", Lane.wait):
                self._lockstep.meet(place)
        if component.name in self._together:
            self._lockstep.inside = place

    def _enter_stage(self, stage: str, component: Component) -> None:
        if stage != self._stage:
            self._release(except_in=stage)
            self._stage = stage
            self._recorder.enter_stage(stage)
        self._up[component.name] = component
        if (following := self._ahead.get(component.name)) is not None:
            following.prefetch_after(component)
            self._up[following.name] = following

    def _step(self, stage: str) -> int | None:
        counted = stage == "denoise" and self._steps is not None and self._steps.total > 0
        return self._steps.done if counted and self._steps is not None else None

    def _release(self, except_in: str | None) -> None:
        with normal_mode():
            for name, component in list(self._up.items()):
                if except_in is None or component.stage != except_in:
                    component.release()
                    self._whole.discard(name)
                    del self._up[name]
