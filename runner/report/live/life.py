"""Whether a job that should be running is: told from its files, and on its own node from its process."""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

from runner.output.folder import Folder
from runner.report.live.status import JobStatus

FRESH = 10.0  # seconds that status.json may be old: it is written every second


class Life(Enum):
    running = "running"
    silent = "silent"  # no sign of life for a while: stopped, killed, or its file system hangs
    dead = "dead"  # its process is gone, and it did not say why


def life_of(run: Mapping[str, Any], status: JobStatus | None, folder: Folder) -> Life:
    """Of the run that run.json says is running. Clocks of nodes that differ by more than FRESH make it seem silent."""
    if abs(time.time() - last_sign(run, status, folder)) <= FRESH:
        return Life.running
    pid = run.get("pid")
    if run.get("host") == socket.gethostname() and isinstance(pid, int) and pid > 0:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return Life.dead
        except PermissionError:  # another user's, so it is there
            pass
    return Life.silent


def last_sign(run: Mapping[str, Any], status: JobStatus | None, folder: Folder) -> float:
    """When the run last wrote, in seconds of the epoch; 0.0 where nothing says."""
    if status is not None and status.run == run.get("run"):
        return status.time
    with suppress(OSError):
        return folder.run_json.stat().st_mtime
    return 0.0
