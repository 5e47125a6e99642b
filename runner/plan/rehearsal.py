"""A request made without weights: the pipeline's own call, over components that compute nothing but shapes.

[Note: rehearsal] The pipeline's code runs as it is, on real tensors, so that schedulers, masks and lengths are what
they will be. A component's call runs its own forward on fake tensors (torch's FakeTensor: shapes, dtypes and strides
without memory), where a tracker counts what is live and what is computed; it gives zeros. What stays real inside are
tensors that code looks into: integers, masks, and small ones such as a timestep. A call of the same shapes as an
earlier one is not made again, nor is a block of the same shapes: its peak and its FLOPs are known. What comes after the
first decoder stays fake, since pictures and clips are large.
"""

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from offload.units import find_blocks
from runner.components.component import METHODS
from runner.components.directory import Directory
from runner.components.whole import from_pretrained
from runner.pipeline.open import on_device
from runner.plan.fakes import ZEROS, FakeTracker, NoFills
from runner.plan.model import Model
from runner.plan.work import Work, Workload, assumed
from weights.overrides import Overrides
from weights.tied import find_weights

_SMALL = 4096  # elements of a tensor of numbers that code may look into
_CPU = torch.device("cpu")
# Arguments that a call can be told by; one with others (an object that keeps keys and values) is made each time.
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


@dataclass
class _Calls:
    """Of one component, so far."""

    number: int = 0
    since_step: int = 0
    together: int = 0  # the most of a step
    flops: float = 0.0
    peak: int = 0
    held: int = 0
    known: dict[Any, tuple[float, Any]] = field(default_factory=dict)  # by signature: FLOPs, and what the call gave


def rehearse(model: Model, directory: Directory, call: Mapping[str, Any], prompt: Mapping[str, Any]) -> Workload:
    """What one request asks of each component. `call`: the arguments, with what files hold; `prompt`: as an argument.

    Where the pipeline cannot be rehearsed (a tokenizer that is not there, code that looks into what a component
    computes), the workload says why, and knows no more than one call a step.
    """
    steps = call.get("num_inference_steps")
    steps = steps if isinstance(steps, int) else 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fake tensors nobody need know, and the rest comes with the real call
            return _rehearsed(model, directory, {**prompt, **call}, steps)
    except Exception as error:  # of any kind: a stranger's code runs on what it was not written for
        return assumed(list(model.sizes), steps, f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")


def _rehearsed(model: Model, directory: Directory, arguments: Mapping[str, Any], steps: int) -> Workload:
    given = {source.name: from_pretrained(source) for source in directory.sources.values() if not source.is_module}
    stock = on_device(directory.pipeline, _CPU)(**directory.settings, **given, **model.modules)
    stock.set_progress_bar_config(disable=True)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    tracker = FakeTracker(weight for module in model.modules.values() for weight in _made_fake(module, fake))
    stage_of = {sizes.name: sizes.stage for sizes in model.sizes}
    rehearsal = _Rehearsal(tracker, fake, {name: _Calls() for name in model.modules})
    if hasattr(stock, "scheduler"):
        rehearsal.notice_steps(stock.scheduler)
    with torch.inference_mode(False), torch.no_grad(), rehearsal.installed(model.modules, stage_of):
        try:
            with tracker, NoFills():
                stock(**arguments, generator=torch.Generator("cpu").manual_seed(0), output_type="pt")
        except Exception:
            if not rehearsal.decoding:  # else what follows is the pipeline's own work on pictures, which are fake
                raise
    return Workload({name: _work(calls, stage_of[name]) for name, calls in rehearsal.calls.items()}, steps)


def _work(calls: _Calls, stage: str) -> Work:
    together = max(1, calls.together) if stage == "denoise" else 1
    mean = calls.flops / calls.number if calls.number else 0.0
    return Work(calls.number, mean, calls.peak, calls.held, together)


def _made_fake(module: nn.Module, fake: FakeTensorMode) -> Iterator[torch.Tensor]:
    """Each weight on meta becomes one that is on the CPU, as far as code can tell."""
    for weight in find_weights(module):
        if weight.tensor.is_meta:
            stand_in = FakeTensor(fake, weight.tensor.detach(), _CPU)
            parameter = isinstance(weight.tensor, nn.Parameter)
            weight.replace(nn.Parameter(stand_in, requires_grad=False) if parameter else stand_in)
            yield stand_in


@dataclass
class _Rehearsal:
    tracker: FakeTracker
    fake: FakeTensorMode
    calls: dict[str, _Calls]
    decoding: bool = False

    @contextmanager
    def installed(self, modules: Mapping[str, nn.Module], stage_of: Mapping[str, str]) -> Iterator[None]:
        """The components' methods and blocks are those of the rehearsal, and back again."""
        overrides = Overrides()
        try:
            for name, module in modules.items():
                blocks = list(find_blocks(module, ("forward", *METHODS)).values())
                parts = [part for part in module.children() if not isinstance(part, nn.ModuleList)]
                for part in (*blocks, *parts):  # a decoder is called for each tile
                    overrides.set(part, "forward", self._around_part(name, part, is_block=part in blocks))
                for method in ("forward", *METHODS):
                    if callable(getattr(type(module), method, None)):
                        overrides.set(module, method, self._around_call(name, module, method, stage_of[name]))
            yield
        finally:
            overrides.undo()

    def notice_steps(self, scheduler: Any) -> None:
        """From the scheduler's class on, since pipelines copy the object."""
        rehearsal: _Rehearsal = self
        cls: Any = type(scheduler)

        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            for calls in rehearsal.calls.values():
                calls.since_step = 0
            return cls.step(self, *args, **kwargs)

        noticed: Any = type(cls.__name__, (cls,), {"__module__": cls.__module__})
        noticed.step = functools.wraps(cls.step)(step)
        scheduler.__class__ = noticed

    def _around_call(self, name: str, module: nn.Module, method: str, stage: str) -> Callable[..., Any]:
        inner = getattr(module, method)
        inside = [False]

        @functools.wraps(inner)
        def call(*args: Any, **kwargs: Any) -> Any:
            if inside[0]:  # a method that calls another one of the component
                return inner(*args, **kwargs)
            calls = self.calls[name]
            calls.number += 1
            calls.since_step += 1
            calls.together = max(calls.together, calls.since_step)
            signature = _signature(method, args, kwargs)
            if signature is not None and signature in calls.known:
                flops, known = calls.known[signature]
                calls.flops += flops
                return self._given(known, stage)
            with self.tracker.paused():
                args, kwargs = tree_map(self._faked, (args, kwargs))
            inside[0], before = True, self.tracker.flops
            self.tracker.fake = self.fake
            try:
                with self.tracker.own_peak() as peak:
                    result = inner(*args, **kwargs)
                    calls.peak = max(calls.peak, peak())
            finally:
                inside[0], self.tracker.fake = False, None
            flops = self.tracker.flops - before
            calls.flops += flops
            if signature is not None and signature == _signature(method, args, kwargs):  # it wrote to none of them
                with self.tracker.paused():  # the pipeline may drop the result, which is not to count then
                    calls.known[signature] = (flops, copy.deepcopy(result))
            return self._given(result, stage)

        return call

    def _given(self, result: Any, stage: str) -> Any:
        """What the pipeline gets of a call: zeros, or from the first decoder on what is fake itself."""
        self.decoding = self.decoding or stage == "decode"
        return result if self.decoding else _mapped(result, _zeros)

    def _around_part(self, name: str, part: nn.Module, *, is_block: bool) -> Callable[..., Any]:
        inner = part.forward
        what = (type(part), *((key, tuple(tensor.shape)) for key, tensor in part.named_parameters()))
        known = self.calls[name].known

        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            tracker, leaves = self.tracker, tree_flatten((args, kwargs))[0]
            if is_block:
                self.calls[name].held = max(self.calls[name].held, tracker.live)
            signature = _signature(what, args, kwargs)
            lists = [value for value in (*args, *kwargs.values()) if isinstance(value, list)]
            if signature is not None and signature in known:
                flops, (more, outputs, spec, written) = known[signature]
                tracker.reach(tracker.live + more)
                tracker.flops += flops
                for value, new in zip(lists, written, strict=True):
                    value[:] = [self._again(one, leaves) for one in new]
                return tree_unflatten([self._again(one, leaves) for one in outputs], spec)
            live, before, owned = tracker.live, tracker.flops, _owned(args, kwargs)
            with tracker.own_peak() as peak:
                result = inner(*args, **kwargs)
                more = peak() - live
            made, spec = tree_flatten(result)
            all_made = [*made, *(item for value in lists for item in value)]
            is_told = all(isinstance(leaf, (torch.Tensor, *_PLAIN)) for leaf in all_made)
            if signature is not None and is_told and owned == _owned(args, kwargs):
                places = {id(leaf): _Given(i) for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
                outputs, *written = ([places.get(id(leaf), _Like.of(leaf)) for leaf in of] for of in (made, *lists))
                known[signature] = (tracker.flops - before, (more, outputs, spec, written))
            return result

        return forward

    def _again(self, like: Any, leaves: list[Any]) -> Any:
        if isinstance(like, _Given):
            return leaves[like.index]
        if not isinstance(like, _Like):
            return like
        with self.fake:
            return torch.empty_strided(like.shape, like.stride, dtype=like.dtype)

    def _faked(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
            return value
        if value.numel() <= _SMALL or not (value.is_floating_point() or value.is_complex()):
            return value
        stand_in = self.fake.from_tensor(value)
        vars(stand_in)[ZEROS] = not value.any()
        return stand_in


@dataclass(frozen=True)
class _Given:
    """One of the arguments, handed on."""

    index: int


@dataclass(frozen=True)
class _Like:
    """A tensor that is made anew."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, value: Any) -> Any:
        return cls(tuple(value.shape), value.stride(), value.dtype) if isinstance(value, torch.Tensor) else value


def _signature(what: Any, args: Any, kwargs: Any) -> tuple[Any, ...] | None:
    """By which a call is known again: shapes, and plain values; None where there is more to it."""
    leaves, spec = tree_flatten((args, kwargs))
    if not all(isinstance(leaf, (torch.Tensor, *_PLAIN)) for leaf in leaves):
        return None
    return (what, str(spec), *map(_shown, leaves))


def _owned(args: Any, kwargs: Any) -> list[dict[Any, int]]:
    """What is in mappings among the arguments: a call that writes to them is made each time. (Decoders of clips keep
    frames in lists; what they put there is known.)"""
    return [{k: id(v) for k, v in value.items()} for value in (*args, *kwargs.values()) if isinstance(value, dict)]


def _shown(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.stride(), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf


def _zeros(value: Any) -> Any:
    return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, FakeTensor) else value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Also through objects that hold tensors, such as a distribution of latents."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        changed = {key: _mapped(item, change) for key, item in value.items()}
        return type(value)(**changed) if hasattr(value, "to_tuple") else changed
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    if hasattr(value, "__dict__") and not isinstance(value, nn.Module | type):
        for key, item in vars(value).items():
            vars(value)[key] = _mapped(item, change)
    return value
