"""What ends a job, and what its last line says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from runner.calls.finite import NotFinite
from runner.calls.lockstep import TornApart
from runner.errors import JobFault
from runner.health.fault import Fault, Status, fault_of
from runner.health.torchrun import tell_agent
from runner.job.making import ends_the_job
from runner.progress import Progress
from runner.request import Request
from weights.weight_file import StoreError


def test_what_ends_a_job_and_what_does_not() -> None:
    ending = (OSError(28, "No space left on device"), MemoryError(), StoreError("x"), JobFault("x"), TornApart("x"))
    device = (
        torch.AcceleratorError("CUDA error: an illegal memory access"),
        RuntimeError("x: CUBLAS_STATUS_EXECUTION"),
    )
    for error in (*ending, *device):
        assert ends_the_job(error, is_alone=True) and ends_the_job(error, is_alone=False), error
    for request in (ValueError(), NotFinite(), OSError(2, "No such file"), RuntimeError("shape")):
        assert not ends_the_job(request, is_alone=True) and not ends_the_job(request, is_alone=False), request


def test_a_device_that_is_full_for_one_request_fails_that_one_where_no_rank_shares_its_weights() -> None:
    assert not ends_the_job(torch.OutOfMemoryError(), is_alone=True)
    assert ends_the_job(torch.OutOfMemoryError(), is_alone=False)


def test_torchruns_report_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    tell_agent("fault: rank 0 is lost")
    tell_agent("a later word")
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=4, error_file=str(tmp_path / "error.json"))
    assert failure.message["message"] == "fault: rank 0 is lost"


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
