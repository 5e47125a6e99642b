"""How fast requests get done, and when the last one will be."""

from collections import deque

_WINDOW = 600.0  # seconds that it looks back: what came up, or slowed down, before that does not count
_LEAST = 2.0  # seconds that it has to have seen


class Pace:
    """Fed with how many requests are done, parts of one included."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def see(self, now: float, done: float) -> None:
        if self._seen and done < self._seen[-1][1]:
            # A request in the making has failed, or another loop of it began. What it had done is not done.
            lost = self._seen[-1][1] - done
            self._seen = deque((when, before - lost) for when, before in self._seen)
        self._seen.append((now, done))
        while self._seen[0][0] < now - _WINDOW:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """Requests a second; None before anything got on."""
        (first, before), (last, done) = self._seen[0], self._seen[-1]
        return (done - before) / (last - first) if last - first >= _LEAST and done > before else None
