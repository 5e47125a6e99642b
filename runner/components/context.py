"""Context parallel: ranks share out the tokens of each call of a component; its attention exchanges tokens for heads.

That is Ulysses: between two attentions each rank has some tokens, in an attention all tokens of some heads. Where a
model's sequence is split and where it is whole again says diffusers' plan of it (`_cp_plan`), and diffusers' attention
exchanges. Its plan is laid here over a module as plain hooks of torch, over ranks of our choice, on any device.

[Note: uneven sequences] Prompts and pictures have lengths that the number of ranks need not divide. diffusers' plain
exchange refuses those; its other one ("anything") tells all lengths over at each attention. Where lengths divide, both
split alike. So a call begins with the plain one, and goes over to the other at its first uneven split: all sequences of
a call are split before its first attention, and have the same lengths on all ranks. Requests take turns inside of a
component, so that this is kept for each of them apart.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from diffusers.hooks.context_parallel import ContextParallelSplitHook
from diffusers.models import attention_dispatch
from diffusers.models._modeling_parallel import (
    ContextParallelConfig,
    ContextParallelInput,
    ContextParallelOutput,
    ParallelConfig,
    gather_size_by_comm,
)
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention, MochiAttention
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from weights.agreement import gather_int
from weights.observer import Observer
from weights.overrides import moves_no_weights

# What a ControlNet, which has no plan and runs whole on each rank, adds to the blocks: (batch, tokens, channels) each.
_RESIDUALS = ("controlnet_block_samples", "controlnet_single_block_samples")


def context_of(module: nn.Module) -> "Context | None":
    """What shares out this module's tokens, read off the module."""
    return vars(module).get("_context")


def has_plan(cls: type) -> bool:
    """Whether diffusers says how to share out the tokens of a model of this class."""
    return getattr(cls, "_cp_plan", None) is not None


def gathered_lengths(size: int, group: dist.ProcessGroup) -> list[int]:
    """Of all ranks. Where a group has gloo alone, diffusers' own asks on the accelerator that torch was built
    for, there or not."""
    if dist.get_backend(group) != dist.Backend.GLOO:
        return gather_size_by_comm(size, group)
    return gather_int(size, group)


# diffusers' attention looks the function up by this name, and has no other joint.
attention_dispatch.gather_size_by_comm = gathered_lengths


class Context:
    """The plan of `module` over the ranks of `mesh`, whose axes are diffusers': ring, of one, and ulysses. On it until
    `remove`.

    Each rank has the same arguments and gets the same output, bit for bit. Raises ValueError for a module whose parts
    do not fit its plan, or whose attention does not exchange.
    """

    def __init__(self, module: nn.Module, mesh: DeviceMesh) -> None:
        self.size = mesh.size()
        self.observer: Observer | None = None  # is told what it took to have the tokens whole again
        self._config = _Config(ulysses_degree=self.size, mesh=mesh)
        self._parallel = ParallelConfig(context_parallel_config=self._config)
        # The device is for diffusers' own mesh.
        self._parallel.setup(dist.get_rank(), dist.get_world_size(), torch.device(mesh.device_type), mesh=mesh)
        self._processors = _processors(module, self.size)
        self._handles: list[Any] = []
        self._module, self._is_on = module, False
        self._install(module)
        self._turn(on=True)
        vars(module)["_context"] = self

    def remove(self) -> None:
        self._turn(on=False)
        for handle in self._handles:
            handle.remove()
        del vars(self._module)["_context"]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Around calls that each rank computes by itself, with all tokens. No other request is inside of the component
        meanwhile."""
        self._turn(on=False)
        try:
            yield
        finally:
            self._turn(on=True)

    def _turn(self, on: bool) -> None:
        self._is_on = on
        for processor in self._processors:
            processor._parallel_config = self._parallel if on else None

    def _install(self, module: nn.Module) -> None:
        plan = _plan_of(module)
        self._before(module, self._begin)
        for place, what in plan.items():
            for part in _parts(module, place):
                if isinstance(what, dict):
                    self._split(part, what)
                else:
                    self._gather(part, [what] if isinstance(what, ContextParallelOutput) else what)

    def _begin(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self._config.ulysses_anything = False
        for name in _RESIDUALS:
            if kwargs.get(name) is not None:
                kwargs[name] = [self._config.part_of(residual, 1) for residual in kwargs[name]]
        return args, kwargs

    def _split(self, part: nn.Module, what: dict[Any, Any]) -> None:
        hook = _Split(what, self._config)
        hook.initialize_hook(part)
        of_output = [one.split_output for one in what.values()]
        if not all(of_output):
            self._before(part, hook.pre_forward)
        if any(of_output):
            self._after(part, hook.post_forward)

    def _gather(self, part: nn.Module, what: list[ContextParallelOutput]) -> None:
        def gather(part: nn.Module, output: Any) -> Any:
            outputs = [output] if isinstance(output, torch.Tensor) else output
            pairs = zip(outputs, what, strict=True)
            whole = [x if one is None else self._whole(x, one.gather_dim) for x, one in pairs]
            return whole[0] if isinstance(output, torch.Tensor) else tuple(whole)

        self._after(part, gather)

    def _whole(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        if self.observer is None:
            return self._config.whole_of(x, dim)
        began = self.observer.now()
        whole = self._config.whole_of(x, dim)
        self.observer.tell("exchange", "", began, self.observer.now(), whole.nbytes - x.nbytes)
        return whole

    def _before(self, part: nn.Module, hook: Callable[..., Any]) -> None:
        def before(part: nn.Module, args: Any, kwargs: Any) -> Any:
            return hook(part, *args, **kwargs) if self._is_on else None

        self._handles.append(part.register_forward_pre_hook(moves_no_weights(before), with_kwargs=True))

    def _after(self, part: nn.Module, hook: Callable[..., Any]) -> None:
        def after(part: nn.Module, args: Any, output: Any) -> Any:
            return hook(part, output) if self._is_on else None

        self._handles.append(part.register_forward_hook(moves_no_weights(after)))


class _Config(ContextParallelConfig):
    """Whose `ulysses_anything` is that of the call in progress: see [Note: uneven sequences]."""

    _uneven: ContextVar[bool] = ContextVar("_uneven", default=False)

    @property
    def ulysses_anything(self) -> bool:
        return self._uneven.get()

    @ulysses_anything.setter
    def ulysses_anything(self, uneven: bool) -> None:
        self._uneven.set(uneven)

    def part_of(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's tokens."""
        size, length = self._ulysses_mesh.size(), x.size(dim)
        if length < size:
            raise ValueError(f"a sequence of {length} token(s) cannot be shared out over mesh.context={size} ranks")
        if length % size:
            self.ulysses_anything = True
        return x.tensor_split(size, dim=dim)[self._ulysses_mesh.get_local_rank()]

    def whole_of(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """The tokens of all ranks. Each sends as many as the one with the most: not every backend takes them uneven."""
        group, size = self._ulysses_mesh.get_group(), self._ulysses_mesh.size()
        lengths = gathered_lengths(x.size(dim), group) if self.ulysses_anything else [x.size(dim)] * size
        mine = x.new_zeros([*x.shape[:dim], max(lengths), *x.shape[dim + 1 :]])
        mine.narrow(dim, 0, x.size(dim)).copy_(x)
        parts = [torch.empty_like(mine) for _ in lengths]
        dist.all_gather(parts, mine, group=group)
        return torch.cat([part.narrow(dim, 0, n) for part, n in zip(parts, lengths, strict=True)], dim=dim)


class _Split(ContextParallelSplitHook):
    parallel_config: "_Config"

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        split = super().pre_forward(module, *args, **kwargs)
        # diffusers 0.42.1 pads the ranks' masks to one length, and takes the padding off the last one alone.
        masked = any("mask" in str(name) and kwargs.get(name) is not None for name in self.metadata)
        if masked and self.parallel_config.ulysses_anything and self.parallel_config._ulysses_mesh.size() > 2:
            raise ValueError(
                "prompts of several lengths in one call, whose tokens the ranks do not divide: their mask is exchanged "
                "wrongly; use mesh.context=2, or one prompt a call"
            )
        return split

    def _prepare_cp_input(self, x: torch.Tensor, cp_input: ContextParallelInput) -> torch.Tensor:
        """What has other dims than the plan expects has no tokens: a timestep that is the same for all of them."""
        if cp_input.expected_dims is not None and x.dim() != cp_input.expected_dims:
            return x
        return self.parallel_config.part_of(x, cp_input.split_dim)


def _processors(module: nn.Module, size: int) -> list[Any]:
    """Of all attention in the module: each has to exchange, or it would see the tokens of its own rank alone."""
    processors = []
    for name, attention in module.named_modules():
        if not isinstance(attention, (Attention, MochiAttention, AttentionModuleMixin)):
            continue
        processor: Any = attention.processor
        if not hasattr(processor, "_parallel_config"):
            raise ValueError(f"{name} attends by a {type(processor).__name__}, which exchanges no tokens")
        if (heads := getattr(attention, "heads", 1)) % size:
            raise ValueError(f"{name} has {heads} heads, which {size} ranks do not divide")
        processors.append(processor)
    return processors


def _plan_of(module: nn.Module) -> Mapping[str, Any]:
    """A plan may tell the blocks that end whole by their numbers, as many as the published model has."""
    plan: Any = module._cp_plan
    for place in (place for place, what in plan.items() if isinstance(what, dict) and "*" in place):
        split = set(_matching(module, place))
        gathered = {name for name, what in plan.items() if not isinstance(what, dict)} & split
        if gathered and split - gathered:
            raise ValueError(f"the plan of {type(module).__name__} covers {len(gathered)} blocks of {len(split)}")
    return plan


def _parts(module: nn.Module, place: str) -> list[nn.Module]:
    """The modules that a line of the plan is about; `*` is any block. None for a block by a number that is not."""
    found = _matching(module, place)
    if not found and not _matching(module, re.sub(r"\d+", "*", place)):
        raise ValueError(f"the plan of {type(module).__name__} names {place!r}, which it does not have")
    return list(found.values())


def _matching(module: nn.Module, place: str) -> dict[str, nn.Module]:
    pattern = re.compile(re.escape(place).replace(r"\*", r"\d+"))
    return {name: part for name, part in module.named_modules() if pattern.fullmatch(name)}
