"""How long a request takes, as far as the calls and steps that it has made tell."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

WORTH = 60.0  # seconds that a request takes before `auto` keeps a log of it
DECIDE = 5.0  # seconds after which `auto` decides, where two steps take longer


def is_worth_a_log(seconds: float) -> bool:
    """For a request that takes so long."""
    return seconds >= WORTH


@dataclass
class Duration:
    """Of one request, from where it is made. `steps`: those done, and in all; 0 where nobody knows."""

    steps: Callable[[], tuple[int, int]]
    calls: list[float] = field(default_factory=list)  # seconds of each of the denoiser's, replayed or computed
    begun: float = field(default_factory=time.monotonic)
    _first_step: float | None = None  # when it was over

    @property
    def so_far(self) -> float:
        return time.monotonic() - self.begun

    def is_worth(self) -> bool | None:
        """Whether it will take long, once two steps are made (the first warms up) or some seconds are over; None until
        then. To be asked after each call."""
        now, (done, total) = time.monotonic(), self.steps()
        if done and self._first_step is None:
            self._first_step = now
        if done >= 2 and self._first_step is not None:
            return is_worth_a_log((now - self._first_step) / max(done - 1, 1) * total)
        if now - self.begun < DECIDE:
            return None
        return not total or is_worth_a_log((now - self.begun) / max(done, 1) * total)

    def needed(self) -> float:
        """Seconds for one more call at least, and for the steps that are left, as far as both are known. The first call
        that is computed warms up: alone it tells nothing of the others."""
        if len(self.calls) < 2:
            return sum(self.calls)
        done, total = self.steps()
        calls_a_step = len(self.calls) / max(done, 1)
        return statistics.median(self.calls) * max((total - done) * calls_a_step, 1.0)
