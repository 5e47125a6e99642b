"""Requests in waves: in each wave every team makes one, or a group of them, alike where teams must stay in step."""

from collections import deque
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.inputs.input_file import alike_text
from runner.request import Request


@dataclass(frozen=True)
class Task:
    """A request that a team makes. `is_filler`: the result is dropped, the ranks in step with it need its forwards.
    `is_alone`: the teams in step with this one make no other request beside it."""

    request: Request
    is_filler: bool = False
    is_alone: bool = False


Wave = Sequence[Sequence[Task]]
"""What each team makes together, by its index: as many tasks as the teams in step with it, each alike theirs in the
same place; none where they all have nothing to do."""


class Waves:
    """Hands out requests in their order, a wave at a time.

    `in_step` are the sizes of the groups of teams that keep in step, in the order of the teams: one team each where no
    weights are sharded, all of them where all ranks share one copy, something between with several sharded copies.
    Requests that go to one such group are alike. Groups do not wait for each other within a wave. A wave has one set of
    adapters, as ranks that gather weights from each other must. `together` is how many requests a team makes in one
    go, at most; it may change from wave to wave. Those `tried` before in vain are made one by one: should one of them
    end the job again, it takes no other along.
    """

    def __init__(
        self, requests: Sequence[Request], in_step: Sequence[int], together: int = 1, tried: Collection[str] = ()
    ) -> None:
        self.together = together
        self._sizes, self._tried = in_step, tried
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
        wave: list[list[Task]] = []
        for size, requests in zip(self._sizes, [*taken, *([[]] * len(self._sizes))], strict=False):
            rows = [_row(requests[first : first + size], size) for first in range(0, len(requests), size)]
            wave += [[row[team] for row in rows] for team in range(size)]
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
        for place, size in enumerate(self._sizes):
            adapters = taken and tuple(taken[0][0].lora.items())
            kind = next((k for k in self._kinds.values() if not taken or tuple(k[0].lora.items()) == adapters), None)
            if kind is None:
                break
            together = 1 if kind[0].id in self._tried else self.together
            number = size * rows(-(-len(kind) // size), len(self._sizes) - place, together)
            taken.append([kind.popleft() for _ in range(min(number, len(kind)))])
            self._kinds = {key: kind for key, kind in self._kinds.items() if kind}
        return taken

    def _kind(self, request: Request) -> deque[Request]:
        alike = alike_key(request.call) if max(self._sizes) > 1 else None
        key = (alike, tuple(request.lora.items()), request.id in self._tried)
        return self._kinds.setdefault(key, deque())


def _row(requests: Sequence[Request], size: int) -> list[Task]:
    """A task for each of the teams in step; those that have no request of their own repeat the first one."""
    tasks = [Task(request, is_alone=len(requests) == 1) for request in requests]
    return tasks + [Task(requests[0], is_filler=True)] * (size - len(tasks))


def rows(left: int, groups: int, together: int) -> int:
    """How many of the rows that are left the first of so many groups takes: as few waves as can be, all alike. A last
    wave of a single request would bring up all weights for it alone."""
    waves = -(-left // (groups * together))
    a_wave = -(-left // waves)
    return -(-a_wave // groups)


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
