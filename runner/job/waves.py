"""Requests in waves: in each wave every team makes one, alike where teams must stay in step."""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.inputs.input_file import alike_text
from runner.request import Request


@dataclass(frozen=True)
class Task:
    """What a team does in a wave. `is_filler`: the result is dropped, the ranks in step with it need its forwards.
    `is_alone`: the teams in step with this one make no other request."""

    request: Request
    is_filler: bool = False
    is_alone: bool = False


Wave = Sequence[Task | None]
"""A task for each team, by its index; None where a team, and all that keep in step with it, have nothing to do."""


class Waves:
    """Hands out requests in their order, a wave at a time.

    `groups` are the sizes of the groups of teams that keep in step, in the order of the teams: one team each where no
    weights are sharded, all of them where all ranks share one copy, something between with several sharded copies.
    Requests that go to one group are alike. Groups do not wait for each other within a wave. A wave has one set of
    adapters, since weights may be one copy for all ranks of a node.
    """

    def __init__(self, requests: Sequence[Request], groups: Sequence[int]) -> None:
        self._sizes = groups
        self._kinds: dict[Hashable, deque[Request]] = {}
        self._alone: deque[Request] = deque()
        for request in requests:
            self._kind(request).append(request)

    def __iter__(self) -> Iterator[Wave]:
        while any(wave := self.next()):
            yield wave

    def next(self) -> Wave:
        """The next wave; of idle teams only when nothing is left."""
        taken = [[self._alone.popleft()]] if self._alone else self._take()
        wave: list[Task | None] = []
        for size, requests in zip(self._sizes, [*taken, *([[]] * len(self._sizes))], strict=False):
            filler = Task(requests[0], is_filler=True) if requests else None
            tasks = [Task(request, is_alone=len(requests) == 1) for request in requests]
            wave += [*tasks, *[filler] * (size - len(tasks))]
        return wave

    def again(self, requests: Sequence[Request], *, alone: bool = False) -> None:
        """Take back requests that a wave could not finish; `alone` puts each in a wave of its own."""
        if alone:
            self._alone.extend(requests)
        else:
            for request in reversed(requests):
                self._kind(request).appendleft(request)

    def _take(self) -> list[list[Request]]:
        """For each group, as long as there are any, requests of one kind; all with the adapters of the first."""
        taken: list[list[Request]] = []
        for size in self._sizes:
            adapters = taken and tuple(taken[0][0].lora.items())
            kind = next((k for k in self._kinds.values() if not taken or tuple(k[0].lora.items()) == adapters), None)
            if kind is None:
                break
            taken.append([kind.popleft() for _ in range(min(size, len(kind)))])
            self._kinds = {key: kind for key, kind in self._kinds.items() if kind}
        return taken

    def _kind(self, request: Request) -> deque[Request]:
        alike = alike_key(request.call) if max(self._sizes) > 1 else None
        return self._kinds.setdefault((alike, tuple(request.lora.items())), deque())


def alike_key(call: Mapping[str, Any]) -> str:
    """Equal for calls that make the same number of forwards of the same shapes.

    Every argument counts as it is, but for three whose value decides less: of a negative prompt, whether there is one
    and whether it is empty; of a guidance scale, on which side of 0 and 1 it lies (where pipelines turn guidance on);
    of a file, its kind and its size in pixels, frames or numbers.
    """
    return alike_text({name: _what_decides(name, value) for name, value in call.items()})


def _what_decides(name: str, value: Any) -> Any:
    if name.startswith("negative_prompt") and (value is None or isinstance(value, str)):
        return [value is not None, bool(value)]
    if name.endswith(("guidance_scale", "cfg_scale")) and isinstance(value, int | float):
        return [value > 0, value > 1]
    return value
