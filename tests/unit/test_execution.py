import pytest
import torch

from runner.execution import ExecutionMode, enter


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


@pytest.mark.parametrize("mode", ExecutionMode)
def test_a_platform_without_inference_mode_gets_no_grad(mode: ExecutionMode) -> None:
    with enter(mode, "npu"):
        assert not torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
