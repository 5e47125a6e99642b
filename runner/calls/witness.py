"""What the ranks of a team compare when they meet: where their random generators stand, and at the end what they made.

They make one request, from one seed, and share out its calls. A rank that drew another random number goes on with other
latents, and the picture would be made of two. So each rank says where it stands whenever the ranks meet.
"""

import random
import zlib
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from runner.media.outputs import fields_of, numbers


class TeamDiffers(RuntimeError):
    """The ranks of a team, which make one request together, came to differ. All of them leave it."""


@dataclass
class _Made:
    """Of the request that is being made in this context."""

    generator: torch.Generator
    content: int = 0


class Witness:
    """Speaks for a rank of a team of `size` ranks that computes on `device`."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self._device = device
        self._making: ContextVar[_Made | None] = ContextVar("_making", default=None)

    def begin(self, generator: torch.Generator) -> None:
        """A request is made in this context, and this is its own generator."""
        self._making.set(_Made(generator))

    def end(self, output: Any) -> None:
        """Its call gave this: from now on that is compared too."""
        made = self._making.get()
        assert made is not None
        content = [(name, _content(value)) for name, value in fields_of(output).items()]
        made.content = zlib.crc32(repr(content).encode())

    def stands(self) -> dict[str, int]:
        """A number for each thing that is compared, by its name: 40 microseconds on a CPU, most of them for numpy's
        generator. An accelerator is not waited for: the state of its generator is kept on the host."""
        made = self._making.get()
        if made is None:
            return {}
        _, keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
        version, words, normal = random.getstate()
        stands = {
            "torch's generator of the CPU": _crc(torch.get_rng_state()),
            "numpy's generator": zlib.crc32(repr(rest).encode(), zlib.crc32(keys)),
            "Python's generator": zlib.crc32(repr((version, hash(words), normal)).encode()),
            "the request's generator": _crc(made.generator.get_state()),
            "what was made": made.content,
        }
        if self._device.type != "cpu":
            state = torch.get_device_module(self._device).get_rng_state(self._device)
            stands["torch's generator of the device"] = _crc(state)
        return stands


def as_number(stands: Sequence[Mapping[str, int]]) -> int:
    """Of 32 bits: the same where all are the same."""
    return zlib.crc32(repr([list(one.values()) for one in stands]).encode()) if any(stands) else 0


def difference(ranks: Sequence[int], stands: Sequence[Mapping[str, int]]) -> str | None:
    """Which rank of a team differs from its first one, and in what; None where none does."""
    for rank, other in zip(ranks, stands, strict=True):
        names = [name for name, number in other.items() if number != stands[0].get(name)]
        if names:
            verb = "is" if len(names) == 1 else "are"
            return f"{' and '.join(names)} {verb} different on rank {rank} than on rank {ranks[0]}"
    return None


def _crc(state: torch.Tensor) -> int:
    return zlib.crc32(state.numpy().data)


def _content(value: Any) -> Any:
    """Numbers, pictures and texts, however nested, as what is the same in every process."""
    if isinstance(value, torch.Tensor | np.ndarray):
        array = numbers(value)
        return [array.dtype.str, array.shape, None if array.dtype.hasobject else zlib.crc32(array.data)]
    if isinstance(value, Image.Image):
        return [value.mode, value.size, zlib.crc32(value.tobytes())]
    if isinstance(value, list | tuple):
        return [_content(one) for one in value]
    if isinstance(value, dict):
        return [(str(name), _content(one)) for name, one in value.items()]
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__
