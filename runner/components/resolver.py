"""Which mode each component's calls run in: the resolver, which reads the live modules, and the modes themselves."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

import offload
import sharding
from runner.components.component import Component
from runner.components.context import context_of
from runner.config import Leave
from weights.agreement import size_of
from weights.modes import normal_mode
from weights.overrides import may_move_weights

# What INFERENCE is on each device type. torch_npu has no inference mode.
_INFERENCE: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "cuda": torch.inference_mode,
    "xpu": torch.inference_mode,
    "mps": torch.inference_mode,
    "cpu": torch.inference_mode,
    "npu": torch.no_grad,
}
# Where torch keeps modules that wrap others: FSDP1, DDP, compiled modules.
_WRAPPERS = ("torch.distributed.", "torch.nn.parallel.", "torch._dynamo.")


class ExecutionMode(Enum):
    INFERENCE = "inference"
    NORMAL = "normal"


@dataclass(frozen=True)
class Decision:
    """The mode that a component's calls run in, and why."""

    mode: ExecutionMode
    reason: str


def enter(mode: ExecutionMode, device_type: str) -> AbstractContextManager[Any]:
    """The context of `mode`; a device type that the table does not know gets no_grad, which every platform has."""
    if mode is ExecutionMode.INFERENCE:
        return _INFERENCE.get(device_type, torch.no_grad)()
    return normal_mode()


def resolve(components: Sequence[Component], leave: Leave) -> dict[str, Decision]:
    """Every component's decision by name, in the components' order."""
    return {component.name: decide(component.module, leave) for component in components}


def by_stage(components: Sequence[Component], decisions: Mapping[str, Decision]) -> dict[str, dict[str, Decision]]:
    """The decisions of each stage's components."""
    stages: dict[str, dict[str, Decision]] = {}
    for component in components:
        stages.setdefault(component.stage, {})[component.name] = decisions[component.name]
    return stages


def decide(module: nn.Module, leave: Leave) -> Decision:
    """Read off the live module: weights that move need normal mode, around the call or only around the movement.

    What is not known to be safe runs in NORMAL, and the reason says what was found.
    """
    if (foreign := _foreign_wrapper(module)) is not None:
        return Decision(ExecutionMode.NORMAL, f"unknown wrapper: {foreign}")
    frozen = sum(t.is_inference() for t in (*module.parameters(), *module.buffers()))
    note = f"; {frozen} of its tensors are inference tensors, made inside inference mode" if frozen else ""
    if (context := context_of(module)) is not None:
        note = f"; {context.size} ranks share out its tokens{note}"
    found = sharding.sharding_of(module)
    if found is not None:
        return _decide_sharded(module, found, leave, note)
    if (offloader := offload.offloader_of(module)) is not None:
        if (readers := size_of(offloader.store.readers)) > 1:
            note = f", read by {readers} ranks together{note}"
        if leave is Leave.component:
            return Decision(ExecutionMode.NORMAL, f"offloaded: its blocks come and go{note}")
        return Decision(ExecutionMode.INFERENCE, f"offloaded: only the copying of blocks leaves it{note}")
    if (unknown := _unknown_wrapper(module)) is not None:
        return Decision(ExecutionMode.NORMAL, f"unknown wrapper: {unknown}{note}")
    return Decision(ExecutionMode.INFERENCE, f"resident: its weights do not move{note}")


def _decide_sharded(module: nn.Module, found: sharding.Sharding, leave: Leave, note: str) -> Decision:
    ranks = f"{found.shard} rank{'s' if found.shard > 1 else ''}"
    if not found.by_fsdp:
        return Decision(ExecutionMode.NORMAL, f"unknown wrapper: DTensors over {ranks} that FSDP does not own{note}")
    if leave is Leave.component:
        return Decision(ExecutionMode.NORMAL, f"sharded over {ranks}: its weights are gathered block by block{note}")
    if not sharding.is_primed(module):
        return Decision(ExecutionMode.NORMAL, f"sharded over {ranks}, and not primed{note}")
    return Decision(ExecutionMode.INFERENCE, f"sharded over {ranks} and primed: only the gathering leaves it{note}")


def _foreign_wrapper(module: nn.Module) -> str | None:
    """A library's own weight mover, on a component of any placement."""
    for name, inner in module.named_modules():
        where = name or "the component"
        if hasattr(inner, "_hf_hook"):
            return f"accelerate's {type(inner._hf_hook).__name__} on {where}"
        if hasattr(inner, "_diffusers_hook"):
            return f"a diffusers hook on {where}"
        if not isinstance(inner, FSDPModule) and type(inner).__module__.startswith(_WRAPPERS):
            return f"{type(inner).__name__} around {where}"
    return None


def _unknown_wrapper(module: nn.Module) -> str | None:
    """Anything on a plain module that could move its weights: hooks, a replaced forward, unusual tensors."""
    for name, inner in module.named_modules():
        where = name or "the component"
        for hook in filter(may_move_weights, (*inner._forward_pre_hooks.values(), *inner._forward_hooks.values())):
            return f"the forward hook {getattr(hook, '__qualname__', type(hook).__name__)} on {where}"
        if "forward" in vars(inner) and may_move_weights(inner.forward):
            return f"the forward of {where} was replaced on the instance"
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if type(tensor) not in (nn.Parameter, torch.Tensor, nn.Buffer):
            return f"{name} is a {type(tensor).__name__}"
        if tensor.is_meta:
            return f"{name} is on the meta device: something else must bring it"
    return None
