"""A call log on the disk: read as far as it is whole, continued there, given up before it costs a job anything."""

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import runner.output.call_log as call_log
from runner.output.call_log import CallLog, Record, count_records, remove_logs

KEY = {"request": "0123456789abcdef", "torch": "2.13.0", "context": 1}


class Bench:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "calls" / "0123456789abcdef.log"
        self.said: list[str] = []

    def open(self, key: dict[str, Any] = KEY, *, writes: bool = True) -> CallLog:
        return CallLog(self.path, key, writes=writes, say=self.said.append)

    def write(self, *bodies: bytes) -> None:
        log = self.open()
        while log.next() is not None:
            continue
        for body in bodies:
            log.append({"call": len(body)}, [body[:3], memoryview(body[3:])])
        log.close()

    def read(self, **how: Any) -> list[bytes]:
        log = self.open(**how)
        records: list[Record] = []
        while (record := log.next()) is not None:
            assert record.header == {"call": len(record.body)}
            records.append(record)
        log.close()
        return [bytes(record.body) for record in records]


BODIES = (b"first call", b"", b"the third", bytes(range(256)) * 40)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(call_log, "RESERVE", 0)
    return Bench(tmp_path)


def test_what_was_appended_is_read_in_order_and_continued(bench: Bench) -> None:
    assert bench.read() == []
    bench.write(*BODIES[:2])
    bench.write(*BODIES[2:])
    assert bench.read() == list(BODIES) and count_records(bench.path) == 4
    assert bench.said == []


def test_at_every_byte_where_it_may_be_cut_the_whole_records_before_it_are_read_and_the_rest_is_written_anew(
    bench: Bench,
) -> None:
    bench.write(b"first", b"2nd")
    ends = [bench.path.stat().st_size]
    bench.write(b"third")
    whole = bench.path.read_bytes()
    title = whole.index(b"\n") + 1
    ends = [title, whole.index(b"2nd") - len(b'{"call": 3}') - call_log._HEAD.size, *ends, len(whole)]
    for cut in range(len(whole)):
        bench.path.write_bytes(whole[:cut])
        expected = [b"first", b"2nd", b"third"][: max(sum(end <= cut for end in ends) - 1, 0)]
        assert bench.read() == expected, cut
        assert count_records(bench.path) == len(expected)
        if cut % 7 == 0:
            bench.write(b"anew")
            assert bench.read() == [*expected, b"anew"]


def test_an_altered_byte_or_a_page_of_zeros_ends_the_log_there(bench: Bench) -> None:
    bench.write(b"first", b"2nd" * 3000, b"third")
    whole = bench.path.read_bytes()
    title, second = whole.index(b"\n") + 1, whole.index(b"2nd")
    for at in range(title, len(whole), 41):
        altered = bytearray(whole)
        altered[at] ^= 1
        bench.path.write_bytes(altered)
        found = bench.read()
        assert found == [b"first", b"2nd" * 3000, b"third"][: len(found)] and len(found) < 3, at
    hole = bytearray(whole)  # a power loss: the length is on the disk, this page is not
    hole[second : second + 4096] = bytes(4096)
    bench.path.write_bytes(hole)
    assert bench.read() == [b"first"]


def test_a_log_of_other_weights_or_libraries_is_put_aside_and_said_so(bench: Bench) -> None:
    bench.write(b"first")
    old = bench.path.read_bytes()
    assert bench.read(key={**KEY, "torch": "2.14.1"}, writes=False) == [] and bench.path.exists() and not bench.said
    assert bench.read(key={**KEY, "torch": "2.14.1"}) == []
    assert "torch: 2.13.0 -> 2.14.1" in bench.said[0] and not bench.path.exists()
    assert bench.path.with_suffix(".aside").read_bytes() == old


def test_a_record_that_answers_another_call_ends_the_log(bench: Bench) -> None:
    bench.write(*BODIES)
    log = bench.open()
    assert log.next() is not None and log.next() is not None
    log.refuse_last("other values")
    assert log.next() is None and log.number == 1 and "call 1 " in bench.said[0]
    log.append({"call": 4}, [b"else"])
    log.close()
    assert bench.read() == [BODIES[0], b"else"]


def test_a_rank_that_reads_along_changes_nothing(bench: Bench) -> None:
    bench.write(*BODIES)
    with bench.path.open("ab") as file:
        file.write(b"torn")
    before = bench.path.read_bytes()
    log = bench.open(writes=False)
    while log.next() is not None:
        continue
    log.append({"call": 1}, [b"x"])
    log.close()
    assert bench.path.read_bytes() == before


def test_a_full_disk_ends_the_log_and_gives_its_room_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write(b"first")
    written, fail = os.write, threading.Event()

    def write(file: int, data: Any) -> int:
        if fail.is_set() and len(data) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(file, data)

    monkeypatch.setattr(os, "write", write)
    fail.set()
    log = bench.open()
    assert log.next() is not None and log.next() is None
    log.append({"call": 9}, [b"a" * 9])
    log.close()
    assert log.given_up == "No space left on device" and not bench.path.exists()
    assert len(bench.said) == 1 and "not logged any more" in bench.said[0]
    log.append({"call": 9}, [b"a" * 9])  # harmless


def test_room_is_asked_for_before_the_first_record(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    log = bench.open()
    assert log.next() is None
    log.ask_for_room(1 << 20)
    assert log.given_up is None
    log.ask_for_room(1 << 60)
    log.append({"call": 1}, [b"x"])
    log.close()
    assert not bench.path.exists() and "MiB may be needed" in bench.said[0]
    monkeypatch.setattr(call_log, "RESERVE", 1 << 60)  # less and less is free while the job runs
    bench.write(b"first")
    assert not bench.path.exists() and "beside the pictures" in bench.said[1]


def test_the_calls_do_not_wait_for_the_disk_which_gets_them_within_seconds(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_log, "FLUSH_SECONDS", 0.2)
    syncing, synced = threading.Event(), os.fdatasync

    def slow(file: int) -> None:
        time.sleep(0.3)
        synced(file)
        syncing.set()

    monkeypatch.setattr(os, "fdatasync", slow)
    log = bench.open()
    assert log.next() is None
    start = time.monotonic()
    for _ in range(5):
        log.append({"call": 3}, [b"abc"])
    assert time.monotonic() - start < 0.1
    assert syncing.wait(5) and bench.read(writes=False) == [b"abc"] * 5
    log.close()


def test_a_disk_that_takes_nothing_costs_the_job_no_more_than_its_patience(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FLUSH_SECONDS", 0.01), ("PATIENCE", 0.2), ("MAX_WAITING", 100)):
        monkeypatch.setattr(call_log, name, value)
    hang = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda file: hang.wait(10))
    log = bench.open()
    assert log.next() is None
    start = time.monotonic()
    for _ in range(9):
        log.append({"call": 60}, [b"a" * 60])
    log.close()
    assert log.given_up == "the disk takes nothing for 0.2 s" and time.monotonic() - start < 2
    hang.set()


def test_logs_of_requests_that_are_gone_are_removed(bench: Bench) -> None:
    bench.write(b"first")
    folder = bench.path.parent
    for name in ("gone.log", "old.aside", "notes.txt"):
        (folder / name).write_bytes(b"")
    assert remove_logs(folder, [bench.path.stem]) == 2
    assert {file.name for file in folder.iterdir()} == {bench.path.name, "notes.txt"}
    (folder / "notes.txt").unlink()
    assert remove_logs(folder) == 1 and not folder.exists() and remove_logs(folder) == 0
