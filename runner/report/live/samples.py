"""Memory and requests over the time of a run, as lines that are appended: they tell of a dead job too."""

import json
import os
from dataclasses import replace

from runner.output.folder import Folder
from runner.report.live.status import JobStatus, RankStatus

_LEAST = 1.0  # seconds between two
_PART = 1 / 200  # of the time that has passed: a week is 1,600 lines, a minute 60


class Samples:
    """Each line holds the most that each rank was seen to have since the line before."""

    def __init__(self, folder: Folder) -> None:
        self._path = folder.samples
        self._last = 0.0
        self._most: dict[int, RankStatus] = {}

    def __call__(self, status: JobStatus) -> None:
        for rank in status.ranks:
            most = self._most.setdefault(rank.rank, rank)
            host, device = max(most.host_bytes, rank.host_bytes), max(most.device_bytes, rank.device_bytes)
            self._most[rank.rank] = replace(rank, host_bytes=host, device_bytes=device)
        if status.time - self._last < max(_LEAST, _PART * (status.time - status.began)):
            return
        self._last = status.time
        self._append(status)
        self._most.clear()

    def _append(self, status: JobStatus) -> None:
        ranks = [self._most[rank] for rank in sorted(self._most)]
        line = {
            "run": status.run,
            "time": round(status.time, 1),
            "made": status.made_now,
            "failed": status.failed_now,
            "host_bytes": [rank.host_bytes for rank in ranks],
            "device_bytes": [rank.device_bytes for rank in ranks] if any(rank.device_bytes for rank in ranks) else [],
        }
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            os.write(file, json.dumps(line).encode() + b"\n")
        finally:
            os.close(file)
