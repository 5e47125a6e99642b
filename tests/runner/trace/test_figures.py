"""What the figures make of sums, and that the intervals of a file come to the same."""

from collections.abc import Sequence
from dataclasses import asdict
from time import sleep

import pytest

from runner.trace.clock import Start
from runner.trace.figures import where
from runner.trace.interval import Interval, Lane
from runner.trace.recorder import Details, Recorder
from runner.trace.sums import steps_of, sums_of


def traced() -> tuple[Recorder, list[Interval]]:
    """Two requests of two steps, whose calls wait for weights, pause, and are followed by an exchange in the glue."""
    recorder, kept = Recorder(), list[Interval]()
    recorder.details = Details(Start(recorder.clock.now(), 0.0), kept.extend)  # type: ignore[arg-type]
    recorder.know("transformer", "denoise")
    weights = recorder.of_weights("transformer")
    for request in ("a", "b"):
        with recorder.request(request):
            with recorder.component("encoder", "encode", None):
                sleep(0.002)
            for step in range(2):
                with recorder.range("meet", Lane.wait):
                    sleep(0.001)
                with recorder.component("transformer", "denoise", step):
                    began = recorder.now()
                    sleep(0.004)
                    weights.tell("wait", "blocks.0", began, recorder.now())
                    weights.tell("prefetch", "blocks.0", began - 0.004, recorder.now(), 1000)  # type: ignore[operator]
                    sleep(0.002)
                    recorder.pause()
                    sleep(0.003)
                    recorder.go_on()
                    with recorder.range("exchange", Lane.exchange, component="transformer", num_bytes=10):
                        sleep(0.002)
                with recorder.range("exchange", Lane.exchange, component="transformer", num_bytes=10):
                    sleep(0.001)
        with recorder.range("write", Lane.write, request=request):
            sleep(0.002)
    recorder.settle()
    return recorder, kept


def test_figures_tell_compute_from_waits_and_hidden_from_exposed_transfers() -> None:
    recorder, _ = traced()
    found = where(recorder.sums, 1.0)
    assert recorder.steps == {
        ("encode", True): 1, ("encode", False): 1, ("denoise", True): 2, ("denoise", False): 2,
    }  # fmt: skip
    for is_warm_up in (True, False):
        steps = found.components["denoise", "transformer", is_warm_up]
        assert steps.calls == 2 and steps.num_bytes == 2 * (1000 + 10 + 10)
        assert 0.004 <= steps.compute < 0.012, "without waits, pauses and exchanges"
        assert steps.exposed_wait >= 0.008 and steps.exchange >= 0.006
        assert steps.hidden == pytest.approx(0.008, abs=0.002)
        assert steps.overlap_percent == pytest.approx(50, abs=10)
    assert found.meet >= 0.004 and found.write >= 0.004
    assert found.glue < 0.010, "neither the meetings nor the exchanges between calls are the pipelines' own code"
    accounted = sum(f.compute + f.exposed_wait + f.exchange for f in found.components.values())
    total = accounted + found.glue + found.meet + found.write + found.other
    assert total == pytest.approx(1.0, abs=1e-6)


def test_the_intervals_of_a_file_come_to_the_same_sums() -> None:
    recorder, kept = traced()
    read: Sequence[Interval] = [one for one in map(Interval.from_json, (one.to_json() for one in kept)) if one]
    assert steps_of(read) == recorder.steps
    found, expected = where(sums_of(read), 1.0), where(recorder.sums, 1.0)
    assert list(found.components) == list(expected.components)
    for name, figures in expected.components.items():
        assert asdict(found.components[name]) == pytest.approx(asdict(figures), abs=1e-4), name
    for rest in ("glue", "meet", "write", "other"):
        assert getattr(found, rest) == pytest.approx(getattr(expected, rest), abs=1e-4), rest


def test_what_is_too_much_is_left_out_of_the_file_and_counted() -> None:
    recorder, kept = Recorder(), list[Interval]()
    recorder.details = Details(Start(0.0, 0.0), kept.extend, left=3)
    for _ in range(5):
        recorder.tell("wait", Lane.wait, "transformer", "", 1.0, 2.0)
    recorder.settle()
    assert len(kept) == 3 and recorder.details.dropped == 2
    assert sum(total.seconds for total in recorder.sums.values()) == 5.0, "the sums have all"


def test_a_call_that_failed_leaves_nothing_under_way() -> None:
    recorder = Recorder()
    with pytest.raises(ValueError), recorder.request("a"), recorder.component("transformer", "denoise", 0):
        recorder.begin_block("transformer", "blocks.0")
        raise ValueError
    with recorder.range("write", Lane.write):
        pass
    assert {(kind.name, kind.inside) for kind in recorder.sums} == {("request", ""), ("component", ""), ("write", "")}
