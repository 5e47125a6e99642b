"""Which tensors a conversion used: followed through its arithmetic, whatever it calls its results."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_ORIGINS = "_lora_origins"  # an attribute of tensors, which therefore lives as long as they do
_TO_NUMBER = (torch.Tensor.item, torch.Tensor.__float__, torch.Tensor.__int__, torch.Tensor.tolist)


class Origins(TorchFunctionMode):
    """While open, every result of a torch function knows which of the `tensors`, by name, it was computed from.

    A converter that leaves a tensor out does not say so: it filters a dictionary, or takes a value and drops it. What
    came of a tensor is seen on the results alone. They are plain tensors with the bits they would have anyway.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self.as_numbers: set[str] = set()
        """Tensors of one element that were read as numbers, as an alpha is: where the number went is not seen."""
        for name, tensor in tensors.items():
            setattr(tensor, _ORIGINS, frozenset([name]))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        used = origins_of(_tensors_in((args, dict(kwargs or {}))))
        if used:
            if func in _TO_NUMBER and id(args[0]) in self._names:
                self.as_numbers.add(self._names[id(args[0])])
            # What is written into is an origin of its parts, and gives back nothing.
            written = args[:1] if func is torch.Tensor.__setitem__ else ()
            for tensor in _tensors_in((result, written)):
                setattr(tensor, _ORIGINS, used | origins_of([tensor]))
        return result


def origins_of(tensors: Iterable[Any]) -> frozenset[str]:
    """The names of all tensors that these were computed from."""
    return frozenset[str]().union(*(getattr(tensor, _ORIGINS, ()) for tensor in tensors))


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for element in value:
            yield from _tensors_in(element)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
