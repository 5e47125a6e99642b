"""How far a request is, as the pipeline's own progress bar counts its steps."""

import operator
from collections.abc import Iterable, Iterator
from typing import Any

from weights.overrides import Overrides


class Steps:
    """`done` of `total` steps of the loop that runs; `total` is 0 where the pipeline has not begun one, or has no bar.

    Diffusers' pipelines count their loop with `self.progress_bar(total=...)` (or over an iterable), whatever the loop
    is like. A pipeline with several loops counts each anew.
    """

    def __init__(self, stock: Any, overrides: Overrides) -> None:
        self.done = self.total = 0
        if callable(getattr(stock, "progress_bar", None)):
            overrides.set(stock, "progress_bar", self._around(stock.progress_bar))

    def start(self) -> None:
        self.done = self.total = 0

    def _around(self, progress_bar: Any) -> Any:
        def counted(iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
            if iterable is not None:
                return progress_bar(self._counted(iterable), total)
            bar = progress_bar(iterable, total)
            self.done, self.total, update = 0, total or 0, bar.update

            def counting(steps: float | None = 1) -> Any:
                self.done += int(1 if steps is None else steps)
                return update(steps)

            bar.update = counting
            return bar

        return counted

    def _counted(self, iterable: Iterable[Any]) -> Iterator[Any]:
        self.done, self.total = 0, operator.length_hint(iterable)
        for item in iterable:
            yield item
            self.done += 1
