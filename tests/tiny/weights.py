"""Seeded random weights that let every parameter reach the picture."""

from typing import TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def randomise(module: AnyModule, seed: int) -> AnyModule:
    """Overwrite every parameter, and return `module` ready for inference.

    Fresh modules hold constants where training is meant to start from the identity: norms at one, and gates, output
    projections and modulation tables at zero, which cut whole blocks off from the output. A constant becomes itself
    plus noise; the rest is drawn with variance 1 / fan-in, which keeps activations near unit scale at any width.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            first = parameter.flatten()[0]
            if bool((parameter == first).all()):
                parameter.copy_(first + 0.1 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return module.eval()
