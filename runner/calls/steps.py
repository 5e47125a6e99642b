"""How far a request is, as the pipeline's own progress bar counts its steps; `Progress` is told of each."""

import operator
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from runner.progress import Progress
from runner.request import Request
from weights.overrides import Overrides


@dataclass
class _Count:
    """Of one request. `id` is none before the first one begins."""

    id: str | None = None
    done: int = 0
    total: int = 0


class Steps:
    """`done` of `total` steps of the loop that runs; `total` is 0 where the pipeline has not begun one, or has no bar.

    Diffusers' pipelines count their loop with `self.progress_bar(total=...)` (or over an iterable), whatever the loop
    is like. A pipeline with several loops counts each anew.
    """

    def __init__(self, stock: Any, overrides: Overrides, progress: Progress) -> None:
        self._progress = progress
        self._counted_in: ContextVar[_Count | None] = ContextVar("_count", default=None)
        if callable(getattr(stock, "progress_bar", None)):
            overrides.set(stock, "progress_bar", self._around(stock.progress_bar))

    @property
    def done(self) -> int:
        return self._count().done

    @property
    def total(self) -> int:
        return self._count().total

    def of_this(self) -> Callable[[], tuple[int, int]]:
        """Tells the same of the request in this context from any other one."""
        count = self._count()
        return lambda: (count.done, count.total)

    def start(self, request: Request) -> None:
        """Of the request that begins in this context; others in contexts of their own count on."""
        self._counted_in.set(_Count(request.id))

    def _around(self, progress_bar: Any) -> Any:
        def counted(iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
            if iterable is not None:
                return progress_bar(self._counted(iterable), total)
            bar = progress_bar(iterable, total)
            count, update = self._restarted(total or 0), bar.update

            def counting(steps: float | None = 1) -> Any:
                self._add(count, int(1 if steps is None else steps))
                return update(steps)

            bar.update = counting
            return bar

        return counted

    def _counted(self, iterable: Iterable[Any]) -> Iterator[Any]:
        count = self._restarted(operator.length_hint(iterable))
        for item in iterable:
            yield item
            self._add(count, 1)

    def _add(self, count: "_Count", steps: int) -> None:
        count.done += steps
        if count.id is not None:
            self._progress.stepped(count.id, count.done, count.total)

    def _restarted(self, total: int) -> "_Count":
        count = self._count()
        count.total, count.done = total, 0
        self._add(count, 0)
        return count

    def _count(self) -> "_Count":
        count = self._counted_in.get()
        if count is None:
            count = _Count()
            self._counted_in.set(count)
        return count
