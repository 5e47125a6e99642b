"""The call logs of a job: which file a request's is, and what its key says."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from runner.health.stderr import say
from runner.numerics import flags, machine, versions
from runner.output.call_log import CallLog, remove_logs
from runner.output.folder import Folder
from runner.request import Request
from runner.resume.replay import Resume


class CallLogs:
    """Opens the log of each request that this rank makes. `decides` is what decides the bits of all of them, beside the
    request's own id; `always` and `time_left` as in `Resume`. `writes`: of the ranks that make a request together, the
    first does; all of them read."""

    def __init__(
        self,
        folder: Folder,
        decides: Mapping[str, Any],
        time_left: Callable[[], float | None],
        *,
        always: bool,
        writes: bool,
    ) -> None:
        self.folder, self._writes = folder, writes
        self._decides, self._time_left, self._always = decides, time_left, always

    def open(self, request: Request, *, is_filler: bool) -> Resume:
        """To go on with. Filler work, and the other ranks of a team, read the log of the request that they repeat, and
        so make no forward that the ranks beside them do not need; they write none, and leave the stopping to those."""
        key = {"request": request.id, **self._decides}
        leads = self._writes and not is_filler
        log = CallLog(self.folder.call_log(request.id), key, writes=leads, say=say)
        return Resume(log, self._time_left if leads else (lambda: None), self._always)


def keep_only(folder: Folder, ids: Sequence[str]) -> None:
    """Remove the logs of requests that the job has no more, or has finished."""
    if (removed := remove_logs(folder.calls, ids)) > 0:
        say(f"{folder.calls}: {removed} call log(s) removed of requests that are made, or no longer asked for")


def remove_logs_of(folder: Folder, ids: Sequence[str]) -> None:
    """What is in the manifest needs no log any more."""
    for id in ids:
        for file in (folder.call_log(id), folder.call_log(id).with_suffix(".aside")):
            with suppress(OSError):  # it is removed when the job starts the next time
                file.unlink(missing_ok=True)


def what_decides(device: torch.device) -> dict[str, Any]:
    """Of the bits of a denoiser's calls, beside the request (whose id covers weights, dtype, prompt, call and seed)."""
    # On a CPU, kernels differ by instruction set, and sums by how many threads share them: `machine` says both.
    # One rank holds the whole sequence: where several share it (context parallelism), bits differ.
    return {**versions(), **flags(), "machine": machine(device), "context": 1}
