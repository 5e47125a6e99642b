"""The modes, and what the resolver reads off live modules."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import accelerate
import diffusers
import pytest
import torch
from torch import nn

from runner.calls.boundary import Boundaries
from runner.calls.lockstep import Lockstep
from runner.components.component import Component
from runner.components.resolver import ExecutionMode, by_stage, decide, enter, resolve
from runner.config import Leave
from runner.progress import Progress
from runner.trace.recorder import Recorder


@pytest.mark.parametrize("device_type", ["cpu", "cuda", "xpu", "mps"])
@pytest.mark.parametrize("outer", [True, False])
def test_modes_hold_wherever_they_are_entered_from(device_type: str, outer: bool) -> None:
    with torch.inference_mode(outer):
        with enter(ExecutionMode.INFERENCE, device_type):
            assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        with enter(ExecutionMode.NORMAL, device_type):
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_grad_enabled(), "leaving inference mode alone would turn autograd on"
            assert not torch.ones(1).is_inference()
        assert torch.is_inference_mode_enabled() is outer


@pytest.mark.parametrize("device_type", ["npu", "a platform to come"])
@pytest.mark.parametrize("mode", ExecutionMode)
def test_a_platform_without_inference_mode_gets_no_grad(mode: ExecutionMode, device_type: str) -> None:
    with enter(mode, device_type):
        assert not torch.is_inference_mode_enabled() and not torch.is_grad_enabled()


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


@pytest.mark.parametrize("leave", Leave)
def test_weights_that_stay_stay_in_inference_mode(leave: Leave) -> None:
    decision = decide(plain(), leave)
    assert decision.mode is ExecutionMode.INFERENCE and decision.reason == "resident: its weights do not move"


def test_inference_tensors_among_the_weights_are_told() -> None:
    with torch.inference_mode():
        module = plain()
    decision = decide(module, Leave.component)
    assert decision.mode is ExecutionMode.INFERENCE and "4 of its tensors are inference tensors" in decision.reason


def _offloaded_by_accelerate(module: nn.Module) -> nn.Module:
    return accelerate.cpu_offload(module, torch.device("cpu"))


def _offloaded_by_diffusers(module: nn.Module) -> nn.Module:
    diffusers.hooks.apply_group_offloading(
        module, torch.device("cpu"), offload_type="leaf_level", offload_device=torch.device("cpu")
    )
    return module


def _hooked(module: nn.Module) -> nn.Module:
    module[1].register_forward_pre_hook(lambda *_: None)
    return module


def _forward_replaced(module: nn.Module) -> nn.Module:
    module[0].forward = module[0].forward
    return module


def _on_meta(module: nn.Module) -> nn.Module:
    return module.to("meta")


class _Quantized(torch.Tensor):
    """A tensor of a kind that nobody here knows."""


def _unusual_tensors(module: nn.Module) -> nn.Module:
    module.register_buffer("scale", torch.ones(2).as_subclass(_Quantized))
    return module


def _compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module)


@pytest.mark.parametrize("leave", Leave)
@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (_offloaded_by_accelerate, "accelerate's"),
        (_offloaded_by_diffusers, "a diffusers hook"),
        (_hooked, "the forward hook"),
        (_forward_replaced, "the forward of 0"),
        (_on_meta, "on the meta device"),
        (_unusual_tensors, "scale is a _Quantized"),
        (_compiled, "OptimizedModule around the component"),
    ],
)
def test_an_unknown_wrapper_fails_closed_and_is_named(
    wrap: Callable[[nn.Module], nn.Module], named: str, leave: Leave
) -> None:
    decision = decide(wrap(plain()), leave)
    assert decision.mode is ExecutionMode.NORMAL
    assert decision.reason.startswith("unknown wrapper: ") and named in decision.reason


def test_a_stage_has_the_decisions_of_its_components() -> None:
    components = [
        Component("text_encoder", plain(), "encode"),
        Component("transformer", _hooked(plain()), "denoise"),
        Component("transformer_2", plain(), "denoise"),
    ]
    decisions = resolve(components, Leave.component)
    stages = by_stage(components, decisions)
    assert {stage: [d.mode.value for d in found.values()] for stage, found in stages.items()} == {
        "encode": ["inference"],
        "denoise": ["normal", "inference"],
    }


def installed(components: list[Component], recorder: Recorder | None = None) -> Boundaries:
    return Boundaries(components, resolve(components, Leave.component), "cpu", Lockstep(None), Progress(), recorder)


def test_boundaries_are_no_unknown_wrappers_and_do_nothing_outside_a_request() -> None:
    component = Component("transformer", plain(), "denoise")
    recorder = Recorder()
    boundaries = installed([component], recorder)
    assert decide(component.module, Leave.component).mode is ExecutionMode.INFERENCE
    component.module(torch.ones(1, 2))
    assert recorder.calls("denoise") == 0
    with boundaries.request():
        component.module(torch.ones(1, 2))
    assert recorder.calls("denoise") == 1 and list(recorder.stages()) == ["denoise"]


class Upcast(nn.Linear):
    def decode(self, x: torch.Tensor) -> torch.Tensor:
        return self(x)


def test_a_conversion_in_mid_flight_leaves_no_inference_tensors() -> None:
    """Some pipelines call `vae.to(dtype=float32)` inside their own call."""
    vae = Upcast(2, 2).bfloat16()
    components = [Component("vae", vae, "decode")]
    seen: list[bool] = []
    boundaries = installed(components)
    with enter(ExecutionMode.INFERENCE, "cpu"), boundaries.request():
        vae.to(dtype=torch.float32)
        vae.register_forward_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
        vae.decode(torch.ones(1, 2))
        assert torch.is_inference_mode_enabled()
    assert vae.weight.dtype is torch.float32 and not vae.weight.is_inference()
    boundaries.close()
    assert seen == [True] and "to" not in vars(vae) and "decode" not in vars(vae) and not vae._forward_pre_hooks


class Interrupted(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt


def test_an_interrupt_in_a_component_leaves_the_mode_as_it_was() -> None:
    components = [Component("transformer", Interrupted(2, 2), "denoise")]
    boundaries = installed(components)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), enter(ExecutionMode.INFERENCE, "cpu"), boundaries.request():
            components[0].module(torch.ones(1, 2))
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_the_runner_works_on_a_platform_without_inference_mode(tiny_root: Path) -> None:
    """A stand-in for npu: the device type that torch_npu registers, with the weights where there is memory."""
    result = subprocess.run(
        [sys.executable, Path(__file__).parent / "npu_stand_in.py", tiny_root],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
