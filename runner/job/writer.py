"""Writes what requests gave in a thread beside the main one, which makes the next request meanwhile.

Encoding a clip, and waiting for a disk, would leave the device idle. Nothing is promised that is not on the disk: a
request is recorded when its files are whole, by this thread.
"""

from collections import deque
from collections.abc import Callable
from threading import Thread
from types import TracebackType

from runner.errors import JobFault
from runner.health.fault import is_disk
from runner.job.results import Failed, Made
from runner.progress import Progress
from runner.request import Request

SECONDS = 5.0  # that a job which cannot go on waits for a file in progress: the disk may be what is lost


class Writer:
    """One output is written at a time and none waits: beside the one that is being made, memory holds one more.

    `write` and what follows it are the main thread's.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._under_way: tuple[Request, Thread] | None = None
        self._over: deque[Made | Failed] = deque()

    def write(self, request: Request, action: Callable[[], Made | Failed]) -> None:
        """Have the thread do it, when it is done with the one before. What `action` raises ends the job: the main
        thread meets it at its next call of a component, or when it comes here."""
        self.wait()
        # A daemon: a disk that hangs must not keep a process that is to end.
        thread = Thread(target=self._run, args=(request, action), name="writer", daemon=True)
        self._under_way = (request, thread)
        thread.start()

    def over(self) -> list[Made | Failed]:
        """What was written, or could not be, since the last look."""
        return [self._over.popleft() for _ in range(len(self._over))]

    def wait(self) -> None:
        """Until nothing is being written. Where that takes too long, the watch sees who stands still, and in what."""
        if self._under_way is not None:
            request, thread = self._under_way
            if thread.is_alive():
                self._progress.making(request)
                self._progress.doing("write")
            thread.join()
            self._under_way = None
        self._progress.check()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """What is made is written, also where the job ends for another reason."""
        if error is None:
            self.wait()
        elif self._under_way is not None:
            self._under_way[1].join(SECONDS)

    def _run(self, request: Request, action: Callable[[], Made | Failed]) -> None:
        try:
            self._over.append(action())
        except BaseException as error:  # of any kind: this thread has nobody else to tell
            self._progress.fail_from_beside(request, "write", ending(error))


def ending(error: BaseException) -> BaseException:
    """As the main thread may raise it inside another request, whose failure it must not pass for."""
    is_known = is_disk(error) or isinstance(error, MemoryError | JobFault)
    return error if is_known else JobFault(f"{type(error).__name__}: {error}")
