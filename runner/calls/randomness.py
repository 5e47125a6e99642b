"""The global random generators, set for each request.

Each request's noise comes from a generator of its own. But some schedulers (stochastic samplers) and models draw from
the global ones, and what they draw would depend on what ran before, and on which rank. So these are set before each
request, from its seed.
"""

import base64
import hashlib
import random
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch


def set_global_generators(seed: int, device: torch.device) -> None:
    """Set torch's generators (the CPU's and the device's), numpy's and Python's for a request."""
    derived = global_seed(seed)
    # Not torch.manual_seed: it also notes down, with a stack trace, what devices that are not there should do later.
    torch.default_generator.manual_seed(derived)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(derived)
    np.random.seed(derived % 2**32)
    random.seed(derived)


def global_seed(seed: int) -> int:
    """Not the seed itself: the first noise of a stochastic sampler would be the request's initial noise once more."""
    return int.from_bytes(hashlib.sha256(f"global {seed}".encode()).digest()[:8], "big") >> 1


def generator_states(device: torch.device, own: torch.Generator | None = None) -> dict[str, Any]:
    """Where the global generators, and a request's `own`, stand: as JSON, to be told apart and to be set again."""
    _, keys, place, has_normal, normal = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    version, numbers, following = random.getstate()
    states = {
        "cpu": _text(torch.get_rng_state()),
        "numpy": [base64.b64encode(keys.tobytes()).decode(), int(place), int(has_normal), float(normal)],
        "python": [version, list(numbers), following],
    }
    if device.type != "cpu":
        states["device"] = _text(torch.get_device_module(device).get_rng_state(device))
    if own is not None:
        states["own"] = _text(own.get_state())
    return states


def set_generators(states: Mapping[str, Any], device: torch.device, own: torch.Generator | None = None) -> None:
    """Set those that `states` names."""
    if "cpu" in states:
        torch.set_rng_state(_state(states["cpu"]))
    if "device" in states:
        torch.get_device_module(device).set_rng_state(_state(states["device"]), device)
    if "own" in states and own is not None:
        own.set_state(_state(states["own"]))
    if "numpy" in states:
        keys, place, has_normal, normal = states["numpy"]
        words = np.frombuffer(base64.b64decode(keys), dtype=np.uint32)
        np.random.set_state(("MT19937", words, place, has_normal, normal))
    if "python" in states:
        version, numbers, following = states["python"]
        random.setstate((version, tuple(numbers), following))


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _state(text: str) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
