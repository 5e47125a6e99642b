"""NaN and infinity are failures, wherever they are."""

import pytest
import torch

from runner.calls.boundary import Timings
from runner.calls.finite import NotFinite, require_finite
from runner.health.fault import Activity, Fault, ends_the_job, fault_of


def test_finite_values_pass_and_others_do_not() -> None:
    require_finite("x", (torch.ones(2), {"a": [torch.zeros(2, dtype=torch.int64)]}, None, "text"))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NotFinite, match=r"latents: 1 of 3"):
            require_finite("latents", ((torch.tensor([1.0, bad, 2.0]),), {}))


def test_what_ends_a_job_and_what_does_not() -> None:
    disk_full = OSError(28, "No space left on device")
    assert ends_the_job(disk_full) and ends_the_job(MemoryError()) and ends_the_job(torch.OutOfMemoryError())
    assert not any(map(ends_the_job, (ValueError(), NotFinite(), OSError(2, "No such file"), RuntimeError("shape"))))


def test_a_fault_names_rank_place_request_and_cause() -> None:
    timings = Timings(current=("denoise", "transformer"))
    activity = Activity(3, "start", "abc 'a fox'", timings=timings)
    fault = fault_of(torch.OutOfMemoryError("too\n  big"), {**activity.status(), "host": "n7"})
    line = "fault: rank 3 on n7, denoise/transformer, request abc 'a fox': OutOfMemoryError: too big"
    assert fault.line() == line and fault.by_request
    assert not fault_of(OSError(28, "No space left on device"), activity.status()).by_request
    assert Fault.of({}, "gone", by_request=True).line() == "fault: rank -1 on ?, start: gone"
