"""The global random generators, set for each request.

Each request's noise comes from a generator of its own. But some schedulers (stochastic samplers) and models draw from
the global ones, and what they draw would depend on what ran before, and on which rank. So these are set before each
request, from its seed.
"""

import hashlib
import random

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
