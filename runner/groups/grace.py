"""Asked to stop: which requests of a group go on, since they end in time, and which are given back.

Those that have not begun to denoise are given back at once. The others share the seconds that are left: each needs its
own steps' time, as measured, and they take turns. Where that is too much for all, the youngest are given back, so that
those nearest to their end get there. What nobody knows yet counts nothing: it is asked again at each call.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from runner.calls.turns import Turn

SecondsLeft = Callable[[], float | None]


@dataclass
class Pace:
    """How fast a turn makes its steps: `note` what is done at each call of a denoiser, on a clock of its own."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=3))  # seconds of a step
    left: int = 0  # steps
    _last: tuple[int, float] | None = None
    _is_warm: bool = False

    def note(self, done: int, total: int, now: float) -> None:
        self.left = max(total - done, 0)
        if self._last is not None and done > self._last[0]:
            if not self._is_warm and self.recent:  # the first one warms up, and tells only until there is another
                self.recent.clear()
                self._is_warm = True
            self.recent.append((now - self._last[1]) / (done - self._last[0]))
        if self._last is None or done != self._last[0]:
            self._last = done, now

    @property
    def seconds_left(self) -> float:
        """0 where nothing is known."""
        return statistics.median(self.recent) * self.left if self.recent else 0.0


class Grace:
    """Of one group. `left`: seconds until the job is given up, None while nobody has asked it to stop; `after`: what
    decoding and writing take, the most that was seen."""

    def __init__(self, left: SecondsLeft, after: float = 0.0) -> None:
        self.left, self.after = left, after
        self._paces: dict[int, Pace] = {}
        self._decoding: dict[int, float] = {}  # since when, on the turn's own clock

    def calls(self, turn: Turn, stage: str) -> None:
        """In the turn: it is about to call a component."""
        if stage == "denoise":
            self._paces.setdefault(turn.index, Pace()).note(*turn.steps(), _clock(turn))
        elif stage == "decode":
            self._decoding.setdefault(turn.index, _clock(turn))

    def over(self, turn: Turn) -> None:
        """Its output is written, too."""
        if turn.index in self._decoding:
            self.after = max(self.after, _clock(turn) - self._decoding[turn.index])

    def allows(self, turn: Turn, others: Sequence[Turn]) -> bool:
        """Whether the turn may go on to its end, beside those of `others` that have come as far."""
        left = self.left()
        if left is None or turn.index in self._decoding:
            return True
        spent = 0.0
        for place, one in enumerate(sorted(others, key=self._steps_left)):
            spent += self._needs(one) + self.after
            if one is turn:
                # What would be lost, since it has no log, may try as the only one: the figures may be too high.
                return spent <= left or (place == 0 and turn.seconds_by_log() is None)
        return True

    def _steps_left(self, turn: Turn) -> tuple[int, int]:
        """Of equals the first go on: not what a noisy clock says, which differs from rank to rank."""
        if turn.index in self._decoding or turn.index not in self._paces:
            return 0, turn.index
        return self._paces[turn.index].left, turn.index

    def _needs(self, turn: Turn) -> float:
        if turn.index in self._decoding or turn.index not in self._paces:
            return 0.0
        return max(self._paces[turn.index].seconds_left, turn.seconds_by_log() or 0.0)


def _clock(turn: Turn) -> float:
    return time.perf_counter() - turn.paused
