"""Hands out requests one by one, where no rank needs another: who is done has the next ones, and waits for nobody.

[Note: who hands out] Rank 0 does, in a thread, since its main one may be inside a request for an hour. It writes that a
request begins before it gives it away: should all be killed, the next run knows what was tried. A counter in the
process group's store would give numbers, but only rank 0 writes the journals. The connections are not the watch's,
whose thread must never wait for a disk.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock, Thread

from runner.health.links import Link, Waiting, connect
from runner.health.messages import Asks, Given
from runner.health.watch import Watch
from runner.job.waves import Task
from runner.job.writer import ending
from runner.output.manifest import Manifest
from runner.progress import Progress
from runner.request import Request
from runner.world import World

TICK = 0.5  # seconds
Take = Callable[[Asks], list[Task]]


class RankZeroLeft(RuntimeError):
    """The watch knows why, and ends the job."""


@contextmanager
def handing_out(batches: Sequence[Sequence[Task]], manifest: Manifest, watch: Watch, world: World) -> Iterator[Take]:
    """What a rank calls to have its next tasks, one of these batches: none where nothing is left, or where the job is
    asked to stop. The batches are the same on all ranks. Collective, and so is its end."""
    tasks = {task.request.id: task for batch in batches for task in batch}
    links, progress = connect(world), watch.progress
    if world.rank != 0:
        yield lambda asks: [tasks[id] for id in _ask(links[0], asks, progress, tasks)]
        links[0].close()
        return
    desk = _Desk([[task.request for task in batch] for batch in batches], manifest, watch)
    # A daemon: where this rank fails, nobody waits for the others here.
    thread = Thread(target=desk.serve, args=(links,), name="desk", daemon=True)
    thread.start()
    yield lambda asks: [tasks[id] for id in desk.answer(asks).ids]
    progress.waiting()
    thread.join()


class _Desk:
    """On rank 0. `answer` may be called by any thread."""

    def __init__(self, batches: Sequence[Sequence[Request]], manifest: Manifest, watch: Watch) -> None:
        self._left = deque(batches)
        self._requests = {request.id: request for batch in batches for request in batch}
        self._manifest, self._watch, self._progress = manifest, watch, watch.progress
        self._lock = Lock()

    def answer(self, asks: Asks) -> Given:
        """What begins now, as the journal says already."""
        with self._lock:
            self._manifest.withdraw(asks.withdrawn)
            self._progress.end(asks.over)
            if self._watch.stop_reason is not None or not (asks.again or self._left):
                return Given()
            batch = [self._requests[id] for id in asks.again] or self._left.popleft()
            ids = tuple(request.id for request in batch)
            self._progress.begin(batch)
            self._manifest.begin(ids)
            if self._watch.stop_reason is not None:  # asked meanwhile: what had begun before is withdrawn already
                self._manifest.withdraw(ids)
                self._progress.end(ids)
                return Given()
            return Given(ids)

    def serve(self, links: Sequence[Link]) -> None:
        """Until the other ranks have all they want."""
        open_links, waiting = set(links), Waiting(links)
        try:
            while open_links:
                for link in waiting.wait(TICK):
                    messages = link.receive()
                    if messages is None:  # done, or lost, which the watch sees too
                        open_links.remove(link)
                        waiting.leave_out(link)
                        link.close()
                    for message in messages or ():
                        if isinstance(message, Asks):
                            link.send(self.answer(message))
        except BaseException as error:  # of any kind: this thread has nobody else to tell
            self._progress.fail_from_beside(None, "record", ending(error))


def _ask(link: Link, asks: Asks, progress: Progress, tasks: dict[str, Task]) -> Sequence[str]:
    """On the other ranks."""
    progress.end(asks.over)
    progress.waiting()
    link.send(asks)
    waiting = Waiting([link])
    while True:
        if waiting.wait(TICK):
            messages = link.receive()
            if messages is None:
                raise RankZeroLeft("rank 0 closed the connection that requests are handed out over")
            for message in messages:
                if isinstance(message, Given):
                    progress.begin([tasks[id].request for id in message.ids])
                    return message.ids
