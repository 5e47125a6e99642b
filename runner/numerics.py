"""Which arithmetic is asked of a device: set once at the start, recorded, and part of the id where it moves bits.

Nothing is set otherwise than a plain script of the stock pipeline has it, so that the bits are its bits. On CUDA torch
takes TF32 for convolutions of float32 and not for matrix products, unless `execution.tf32` says otherwise. cuDNN does
not try which of its algorithms is fastest: the choice would fall differently from run to run.
"""

import platform
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

from runner.errors import UserError

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "omegaconf", "numpy")


def settle_numerics(device: torch.device, tf32: bool | None) -> None:
    """For the process. Raises UserError for TF32 on a device that has none."""
    if tf32 is not None:
        if device.type != "cuda":
            raise UserError(f"execution.tf32={str(tf32).lower()}: {device.type} has no TF32; leave it unset")
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False


def flags() -> dict[str, Any]:
    """As they are now, whoever set them: the environment may have too."""
    return {
        "float32_matmul": torch.get_float32_matmul_precision(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def flags_that_decide(device: torch.device) -> dict[str, str]:
    """Of the bits on this device, for the recipe and the ids."""
    if device.type == "cpu":  # where precision and determinism have one answer
        return {}
    return {f"numerics.{name}": str(value) for name, value in flags().items()}


def machine(device: torch.device) -> str:
    """What computes: the accelerator's name, or the CPU's instruction set and number of threads, which move bits."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s)"
    module = torch.get_device_module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else device.type


def made_on(device: torch.device) -> dict[str, str]:
    """For the line of each finished request: the device, and the releases of what computes on it."""
    return {"device": machine(device), "python": platform.python_version(), **versions()}


@cache
def versions() -> dict[str, str]:
    """Asked for with each request, and found by looking through the file system."""
    return {name: version(name) for name in LIBRARIES}
