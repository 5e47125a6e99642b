"""scripts/generate.py for tiny Flux pipelines, but what a prompt says goes wrong in its request.

"raise in block", "kill in decode", "lose in block" (the device): of its calls there, the second one (of blocks the
fifth); a store fails once the request denoises. "In round": on rank 1 alone, in a block of a call that it makes by
itself, past the first step.
"""

import errno
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock

import offload
from runner.progress import Progress
from scripts.generate import main

PLACES: dict[str, tuple[Any, str, int]] = {
    "encode": (diffusers.FluxPipeline, "encode_prompt", 1),
    "glue": (diffusers.FlowMatchEulerDiscreteScheduler, "step", 2),
    "block": (FluxSingleTransformerBlock, "forward", 5),
    "round": (FluxSingleTransformerBlock, "forward", 8),
    "store": (offload.DiskStore, "read", 2),
    "decode": (diffusers.AutoencoderKL, "_decode", 1),
}
current: list[Progress] = []
calls: Counter[str] = Counter()


def sabotage(place: str) -> None:
    owner, name, at = PLACES[place]
    plain: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        request = current[-1].request if current else None
        how, _, where = str(request.prompt if request else "").partition(" in ")
        is_here = place != "round" or os.environ.get("RANK") == "1"
        if where == place and is_here and (place != "store" or current[-1].stage == "denoise"):
            calls[place] += 1
            if calls[place] == at:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "lose":
                    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
                raise OSError(errno.EIO, "as told") if place == "store" else ValueError("as told")
        return plain(*args, **kwargs)

    setattr(owner, name, wrapped)


def listen() -> None:
    plain = Progress.__init__

    def noted(self: Progress, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        current.append(self)

    Progress.__init__ = noted  # type: ignore[method-assign]


if __name__ == "__main__":
    listen()
    for place in PLACES:
        sabotage(place)
    sys.exit(main())
