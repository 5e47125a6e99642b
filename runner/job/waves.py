"""Requests in waves: in each wave every rank makes one, alike where the ranks must stay in lockstep."""

import json
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar


class _HasCall(Protocol):
    @property
    def call(self) -> Mapping[str, Any]: ...

    @property
    def lora(self) -> Mapping[str, float]: ...


R = TypeVar("R", bound=_HasCall)


class Waves(Generic[R]):
    """Hands out waves of up to `size` requests, in the requests' order; with `lockstep`, of requests that are alike.

    A wave with fewer requests than ranks is to be filled up with repetitions whose results are dropped.
    """

    def __init__(self, requests: Sequence[R], size: int, *, lockstep: bool) -> None:
        self.size = size
        self._lockstep = lockstep
        self._groups: dict[Hashable, deque[R]] = {}
        self._alone: deque[R] = deque()
        for request in requests:
            self._group(request).append(request)

    def __iter__(self) -> Iterator[list[R]]:
        while wave := self.next():
            yield wave

    def next(self) -> list[R]:
        """The next wave; empty when nothing is left."""
        if self._alone:
            return [self._alone.popleft()]
        while self._groups:
            key, group = next(iter(self._groups.items()))
            if group:
                return [group.popleft() for _ in range(min(self.size, len(group)))]
            del self._groups[key]
        return []

    def again(self, requests: Sequence[R], *, alone: bool = False) -> None:
        """Take back requests that a wave could not finish; `alone` puts each in a wave of its own."""
        if alone:
            self._alone.extend(requests)
        else:
            for request in reversed(requests):
                self._group(request).appendleft(request)

    def _group(self, request: R) -> deque[R]:
        # Weights may be one copy for several ranks, so a wave has one set of adapters, in one order.
        key = (alike_key(request.call) if self._lockstep else None, tuple(request.lora.items()))
        return self._groups.setdefault(key, deque())


def alike_key(call: Mapping[str, Any]) -> str:
    """Equal for calls that make the same number of forwards of the same shapes.

    Every argument counts as it is, but for two whose value decides less: of a negative prompt, whether there is one and
    whether it is empty; of a guidance scale, on which side of 0 and 1 it lies (where pipelines turn guidance on).
    """
    return json.dumps({name: _what_decides(name, value) for name, value in call.items()}, sort_keys=True, default=str)


def _what_decides(name: str, value: Any) -> Any:
    if name.startswith("negative_prompt") and (value is None or isinstance(value, str)):
        return [value is not None, bool(value)]
    if name.endswith(("guidance_scale", "cfg_scale")) and isinstance(value, int | float):
        return [value > 0, value > 1]
    return value
