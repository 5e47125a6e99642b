"""Normal mode: where weights may be made and moved without becoming inference tensors.

A tensor made inside `torch.inference_mode` is an inference tensor for ever, and one that was bound there cannot be
written outside. Weights move while a pipeline runs in inference mode, so everything that moves them enters this first.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def normal_mode() -> Iterator[None]:
    """`inference_mode(False)` alone would turn autograd on, also inside an outer `no_grad`. Modes are per thread."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def refuse_inference_mode(action: str) -> None:
    """Raise RuntimeError inside `torch.inference_mode`: tensors made there stay inference tensors for ever."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(f"refusing to {action} inside torch.inference_mode; do it in normal mode, at load")
