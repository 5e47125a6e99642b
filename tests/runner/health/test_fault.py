"""What ends a job, and what its last line says."""

from dataclasses import replace

import torch

from runner.calls.finite import NotFinite
from runner.health.fault import Fault, Status, fault_of
from runner.job.job import ends_the_job
from runner.progress import Progress
from runner.request import Request


def test_what_ends_a_job_and_what_does_not() -> None:
    disk_full = OSError(28, "No space left on device")
    assert ends_the_job(disk_full) and ends_the_job(MemoryError()) and ends_the_job(torch.OutOfMemoryError())
    assert not any(map(ends_the_job, (ValueError(), NotFinite(), OSError(2, "No such file"), RuntimeError("shape"))))


def test_a_fault_names_rank_place_request_and_cause() -> None:
    progress = Progress(3)
    progress.making(Request("a fox", id="abc"))
    progress.calling("denoise", "transformer")
    status = Status.of(progress)
    fault = fault_of(torch.OutOfMemoryError("too\n  big"), replace(status, host="n7"))
    line = "fault: rank 3 on n7, denoise/transformer, request abc 'a fox': OutOfMemoryError: too big"
    assert fault.line() == line and fault.by_request
    assert not fault_of(OSError(28, "No space left on device"), status).by_request
    assert Fault.at(Status(), "gone", by_request=True).line() == "fault: rank -1 on ?, start: gone"


def test_progress_changes_with_every_call_and_request() -> None:
    progress, told = Progress(), []
    progress.listener = lambda: told.append(progress.request)
    positions = [progress.position()]
    for step in (
        lambda: progress.making(Request("a fox", id="abc")),
        lambda: progress.calling("denoise", "transformer"),
        lambda: progress.calling("denoise", "transformer"),
        progress.waiting,
    ):
        step()
        positions.append(progress.position())
    assert len(set(positions)) == 5 and [request.id for request in told if request] == ["abc"]
