"""Numbers that are no numbers: a picture of NaN is a black square that nobody is told of."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


class NotFinite(ArithmeticError):
    """A request's latents or pixels hold NaN or infinity."""


def require_finite(what: str, value: Any) -> None:
    """Raise NotFinite when a floating tensor or array in `value` (nested as pipelines nest them) holds one.

    One reduction a tensor, at the two ends of the decoder: where latents come in and pixels go out. It finds the least
    and the largest value, and NaN where there is one: comparing each would copy the pixels at the memory's peak.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and value.numel() and not torch.isfinite(torch.stack(torch.aminmax(value))).all():
            bad = int((~torch.isfinite(value)).sum())
            raise NotFinite(f"{what}: {bad} of {value.numel()} values are NaN or infinite")
    elif isinstance(value, Mapping):
        for inner in value.values():
            require_finite(what, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            require_finite(what, inner)
