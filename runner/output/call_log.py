"""A request's call log: what the calls of its denoiser gave, a record a call, in a file that only grows.

[Note: the format of a call log]
The first line is a JSON object: the format's number, and the key, which is all that decides the bits of the calls.
Then come the records: a head of fixed size (magic, number of the call, bytes of the header, bytes of the body, CRC-32
of all of these), the header (JSON: what was called and with what, and how its result is put together) and the body (the
raw elements of the tensors, one after the other). Nothing is pickled. The first record that is cut short, altered or
out of its number ends the log: what a lost node had not written yet may read as zeros, and as old bytes.
"""

import errno
import json
import os
import struct
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

FORMAT = 1
FLUSH_SECONDS = 2.0  # from a call to the disk
PATIENCE = 30.0  # seconds that a call waits for a disk that is slower than the calls, before the log is given up
MAX_WAITING = 256 << 20  # bytes that wait in memory for the disk
RESERVE = 256 << 20  # bytes of the disk that are left to pictures and journals
_HEAD = struct.Struct("<4sIIQI")
_NUMBERS = struct.Struct("<IIQ")
_MAGIC = b"call"
_MAX_TITLE = 1 << 16

Say = Callable[[str], None]


@dataclass(frozen=True)
class Record:
    """One call: `header` as it was given to `append`, `body` with its tensors' bytes."""

    header: Mapping[str, Any]
    body: bytearray


class CallLog:
    """The log of one request: first read to its end, then continued by a thread of its own.

    `writes`: false on a rank that only reads along. A disk that is full, or fails, ends the writing with a line to
    `say`, and gives the log's room back: the log must not cost the job anything.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], *, writes: bool, say: Say) -> None:
        self.path, self.key = path, json.loads(json.dumps(key))
        self.number = 0  # of the next record that is read or appended
        self.bytes_appended = 0
        self.given_up: str | None = None  # why nothing more is written
        self.writes, self._say = writes, say
        self._file: BinaryIO | None = self._open()  # for reading, until the log ends
        self._last = self._end = 0  # where the record that was read last begins, and where it ends
        if self._file is not None:
            self._last = self._end = self._file.tell()
        self._changed = threading.Condition()
        self._waiting: list[Sequence[bytes | memoryview]] = []
        self._bytes_waiting = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    # Reading.

    @property
    def is_at_end(self) -> bool:
        """Whether every record has been read, so that the next call is to be computed."""
        return self._file is None

    def next(self) -> Record | None:
        """The next record; None where the log ends."""
        if self._file is None:
            return None
        try:
            record = _read_record(self._file, self.number)
        except OSError as error:  # a file system that went away: the calls can be computed
            self._say(f"{self.path}: cannot be read on ({error}); its other calls are computed")
            record = None
        if record is None:
            self._end_reading()
            return None
        self._last, self._end = self._end, self._file.tell()
        self.number += 1
        return record

    def refuse_last(self, reason: str) -> None:
        """The record that was read last answers another call: it and all after it are of no use."""
        self._say(
            f"{self.path}: call {self.number - 1} in it is not the one that is made now ({reason}); going on from there"
        )
        self._end, self.number = self._last, self.number - 1
        self._end_reading()

    def _open(self) -> BinaryIO | None:
        """The file at its first record; None where there is none that answers the calls of this job."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return None
        except OSError as error:
            self._say(f"{self.path}: cannot be read ({error}); its calls are computed again")
            return None
        key = _read_title(file)
        if key == self.key:
            return file
        file.close()
        if self.writes and key is not None:
            aside = self.path.with_suffix(".aside")
            self._say(
                f"{self.path}: its calls were made otherwise ({_difference(key, self.key)}); put aside as {aside.name}"
            )
            os.replace(self.path, aside)
        return None

    def _end_reading(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # Writing.

    def ask_for_room(self, num_bytes: int) -> None:
        """Give up before the first record where the disk has no room for so many bytes and what a job needs beside."""
        try:
            free = _free(self.path)
        except OSError as error:
            self._give_up(str(error))
            return
        if free < num_bytes + RESERVE:
            self._give_up(f"{free >> 20} MiB are free, and {num_bytes + RESERVE >> 20} MiB may be needed")

    def append(self, header: Mapping[str, Any], body: Sequence[bytes | memoryview]) -> None:
        """Keep a call's record: on the disk within seconds, and for certain after `close`. Does not wait for the disk,
        unless that is slower than the calls. `body` must not change any more."""
        assert self.is_at_end, "a log is read to its end before it is continued"
        text = json.dumps(header).encode()
        record = _framed(self.number, text, body)
        self.number += 1
        if not self.writes or self.given_up is not None:
            return
        size = sum(map(len, record))
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_room_for(size), PATIENCE):
                self._give_up(f"the disk takes nothing for {PATIENCE:g} s")
            if self.given_up is not None:
                return
            self._waiting.append(record)
            self._bytes_waiting += size
            self._changed.notify_all()
        self.bytes_appended += size
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_on, name="call log", daemon=True)
            self._thread.start()

    def drop(self, reason: str) -> None:
        """Nothing more is written, and what was is removed."""
        self._end_reading()
        with self._changed:
            self.given_up = self.given_up or reason
            self._waiting.clear()
            self._changed.notify_all()
        if self.writes:
            with suppress(OSError):  # the disk that the reason may speak of
                self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """What was appended is on the disk when this returns (or the log is given up). The file stays."""
        self._end_reading()
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(PATIENCE)
        self._thread = None

    def _has_room_for(self, size: int) -> bool:
        return self.given_up is not None or not self._waiting or self._bytes_waiting + size <= MAX_WAITING

    def _write_on(self) -> None:
        """The thread: what has come in goes to the disk, every few seconds."""
        file: int | None = None
        try:
            while batch := self._take():
                file = self._continue_file() if file is None else file
                size = sum(len(part) for record in batch for part in record)
                if _free(self.path) < size + RESERVE:
                    raise OSError(errno.ENOSPC, "no room for more beside the pictures")
                _write_all(file, batch)
                os.fdatasync(file)
                with self._changed:
                    self._bytes_waiting -= size
                    self._changed.notify_all()
        except OSError as error:
            self._give_up(error.strerror or str(error))
        finally:
            if file is not None:
                os.close(file)

    def _take(self) -> list[Sequence[bytes | memoryview]]:
        """What waits, once the time to write it has come; nothing when the log was closed and all is written."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing or self.given_up)
            is_urgent = lambda: self._closing or self.given_up or self._bytes_waiting > MAX_WAITING // 2  # noqa: E731
            self._changed.wait_for(is_urgent, FLUSH_SECONDS)
            batch, self._waiting = self._waiting, []
            return batch

    def _continue_file(self) -> int:
        """The file, cut where its last good record ends; a new one with its title. Its name is on the disk too."""
        self.path.parent.mkdir(exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        os.ftruncate(file, self._end)
        os.lseek(file, self._end, os.SEEK_SET)
        if not self._end:
            _write_all(file, [[json.dumps({"format": FORMAT, "key": self.key}).encode() + b"\n"]])
            _sync_folder(self.path.parent)
        return file

    def _give_up(self, reason: str) -> None:
        """Its room goes to what the job has to write."""
        if self.given_up is None:
            self.drop(reason)
            self._say(
                f"{self.path}: calls are not logged any more ({reason}); a job that is cut short begins this anew"
            )


def remove_logs(folder: Path, keep: Sequence[str] = ()) -> int:
    """Remove all but the logs of these requests, and what was put aside; the folder too, once it is empty. How many
    were removed. What cannot be removed stays."""
    removed = 0
    try:
        for file in folder.iterdir():
            if file.suffix in (".log", ".aside") and not (file.suffix == ".log" and file.stem in keep):
                file.unlink(missing_ok=True)
                removed += 1
        folder.rmdir()
    except OSError:  # not there, not empty, or not ours to change
        return removed
    return removed


def count_records(path: Path) -> int:
    """How many records a log holds, by their heads alone: the file's length says whether the last is whole."""
    try:
        with path.open("rb") as file:
            size, count = os.fstat(file.fileno()).st_size, 0
            if _read_title(file) is None:
                return 0
            while (head := _read_head(file, count)) is not None and file.tell() + head[0] + head[1] <= size:
                file.seek(head[0] + head[1], os.SEEK_CUR)
                count += 1
            return count
    except OSError:
        return 0


def _read_title(file: BinaryIO) -> dict[str, Any] | None:
    """The key; None where the title is torn, or of another format."""
    line = file.readline(_MAX_TITLE)
    try:
        title = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    is_ours = isinstance(title, dict) and title.get("format") == FORMAT and isinstance(title.get("key"), dict)
    return title["key"] if title is not None and is_ours else None


def _read_head(file: BinaryIO, number: int) -> tuple[int, int, int] | None:
    """Bytes of the header, bytes of the body, checksum; None where no record of this number begins."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    magic, found, num_header, num_body, checksum = _HEAD.unpack(head)
    return (num_header, num_body, checksum) if magic == _MAGIC and found == number else None


def _read_record(file: BinaryIO, number: int) -> Record | None:
    head = _read_head(file, number)
    if head is None:
        return None
    num_header, num_body, checksum = head
    if os.fstat(file.fileno()).st_size - file.tell() < num_header + num_body:  # before memory is taken for it
        return None
    header, body = bytearray(num_header), bytearray(num_body)
    if file.readinto(header) < num_header or file.readinto(body) < num_body:  # type: ignore[attr-defined]
        return None
    if _checksum(number, header, [body]) != checksum:
        return None
    return Record(json.loads(header), body)


def _framed(number: int, header: bytes, body: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview]:
    num_body = sum(map(len, body))
    head = _HEAD.pack(_MAGIC, number, len(header), num_body, _checksum(number, header, body))
    return [head, header, *body]


def _checksum(number: int, header: bytes | bytearray, body: Sequence[bytes | bytearray | memoryview]) -> int:
    checksum = zlib.crc32(header, zlib.crc32(_NUMBERS.pack(number, len(header), sum(map(len, body)))))
    for part in body:
        checksum = zlib.crc32(part, checksum)
    return checksum


def _write_all(file: int, records: Sequence[Sequence[bytes | memoryview]]) -> None:
    for part in (memoryview(part) for record in records for part in record):
        while part:  # a disk that is nearly full takes a part, and raises the next time
            part = part[os.write(file, part) :]


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _free(path: Path) -> int:
    """Bytes that a user may still write where `path` is, or will be."""
    there = path if path.exists() else next(parent for parent in path.parents if parent.exists())
    found = os.statvfs(there)
    return found.f_bavail * found.f_frsize


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return "; ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys)
