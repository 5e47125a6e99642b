"""What a rank is doing now: written by the pipeline and the job in the main thread, read by the watch in its own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from runner.request import Request

WAITING = "waiting"  # for the other ranks of the wave


@dataclass
class Progress:
    """`stage` and `component` are where the current request is, or was last, for error reports."""

    rank: int = 0
    stage: str = "start"
    component: str | None = None
    request: Request | None = None  # while one is being made
    wave: Sequence[Request] = ()  # what all ranks are making, while a wave is made and recorded
    calls: int = 0  # of components, so far
    listener: Callable[[], None] = field(default=lambda: None, repr=False)  # told when another request begins

    def doing(self, stage: str, component: str | None = None) -> None:
        self.stage, self.component = stage, component

    def making(self, request: Request) -> None:
        """From now on this rank makes a request, until `waiting` or `doing` something else."""
        self.stage, self.component, self.request = "start", None, request
        self.listener()

    def calling(self, stage: str, component: str) -> None:
        self.doing(stage, component)
        self.calls += 1

    def waiting(self) -> None:
        self.stage, self.component, self.request = WAITING, None, None

    @contextmanager
    def making_wave(self, requests: Sequence[Request]) -> Iterator[None]:
        self.wave = requests
        yield
        self.wave = ()

    def position(self) -> tuple[str, str | None, int]:
        """Changes whenever this rank gets on."""
        return self.stage, self.request.id if self.request else None, self.calls
