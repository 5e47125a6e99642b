"""report.html anew now and then, while the job runs."""

import time

from runner.output.folder import Folder
from runner.report.live.status import JobStatus
from runner.report.page.page import write_report

_FIRST = 10.0  # seconds
_LEAST = 30.0
_PART = 100  # times what it took to write: so that it costs one part in a hundred of one thread


class LivePage:
    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._next = time.monotonic() + _FIRST

    def __call__(self, status: JobStatus) -> None:
        if (start := time.monotonic()) < self._next:
            return
        write_report(self._folder)
        took = time.monotonic() - start
        self._next = start + max(_LEAST, _PART * took)
