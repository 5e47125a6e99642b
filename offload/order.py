"""Which blocks will run next, foretold from those that ran."""

from collections.abc import Sequence


class Order:
    """What ran after the longest stretch of the past that ended like now.

    Declared order is only a first guess: models skip blocks, repeat or interleave them, a VAE runs its decoder alone
    and once per tile. For what is new, the next block is the declared one, and after the last comes the first: the next
    step. A stage is expected to begin like the one before it and to take as many blocks, so that nothing is fetched
    that its end would throw away. A wrong guess costs time, never a wrong weight.
    """

    def __init__(self, declared: Sequence[str]) -> None:
        self._declared = tuple(declared)
        self._past: list[str] = []
        self._next: int | None = None  # the place in the past where it goes on like now
        self._stage = _Stage([], 0)
        self._last_stage: _Stage | None = None
        self._upcoming: list[str] | None = None

    def ran(self, block: str) -> None:
        self._forget()
        as_expected = self._next is not None and self._past[self._next] == block
        self._past.append(block)
        if self._next is not None and as_expected:
            self._next += 1  # what matched for longest matches one more
        else:
            self._next = _after_longest_match(self._past)
        self._stage.length += 1
        if len(self._stage.head) < len(self._declared):
            self._stage.head.append(block)
        self._upcoming = None

    def stage_ended(self) -> None:
        if self._stage.length:
            self._last_stage, self._stage = self._stage, _Stage([], 0)
            self._upcoming = None

    def upcoming(self) -> list[str]:
        """The blocks expected to run from now on, soonest first, each once; at most until the end of the stage."""
        if self._upcoming is None:
            self._upcoming = list(dict.fromkeys(self._expected()))
        return self._upcoming

    def _forget(self) -> None:
        """Four rounds are enough to tell apart passes that alternate, as those of guidance that skips layers do."""
        enough = 4 * len(self._declared)
        if len(self._past) >= 2 * enough:
            del self._past[:-enough]
            self._next = _after_longest_match(self._past)

    def _expected(self) -> list[str]:
        if not self._stage.length:
            return self._last_stage.head if self._last_stage else list(self._declared)
        if self._next is None:
            first = self._declared.index(self._past[-1]) + 1
            expected = [*self._declared[first:], *self._declared[:first]]
        else:
            expected = self._past[self._next :]  # and round again from here: the same blocks
        left = self._last_stage.length - self._stage.length if self._last_stage else -1
        if left < 0:  # longer than the last one
            return expected
        return expected[:left]


class _Stage:
    """The first blocks that ran in it, one round of them at most, and how many calls of blocks there were."""

    def __init__(self, head: list[str], length: int) -> None:
        self.head = head
        self.length = length


def _after_longest_match(past: list[str]) -> int | None:
    """Where to read on: behind the place whose past is like ours for longest, the most recent of equals; None where
    the last block ran for the first time."""
    best, best_length = None, 0
    for end in range(len(past) - 2, -1, -1):
        length = 0
        while length <= end and past[end - length] == past[-1 - length]:
            length += 1
        if length > best_length:
            best, best_length = end + 1, length
    return best
