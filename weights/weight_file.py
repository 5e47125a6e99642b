"""One safetensors file that is read again and again while others may need the page cache, or change the file."""

import os
from collections.abc import Sequence
from pathlib import Path


class StoreError(RuntimeError):
    """Weights could not be read from where they rest: says which file and tensor, and why."""


# What says that a path still holds the file it held: device, inode, size in bytes, time of the last write.
Identity = tuple[int, int, int, int]


def identity(path: Path) -> Identity:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


class WeightFile:
    """Positioned reads from one open file, from any number of threads.

    The page cache is left as it was found: a file that was in it stays (to someone it is worth the memory, and a
    read from there is a memcpy); of any other file, the pages that a read brought in are dropped after it.
    """

    def __init__(self, path: Path, headers_read_from: Identity | None, *, keep_pages: bool = False) -> None:
        """`headers_read_from`: what the path held before its header was read; None where it held nothing.

        `keep_pages`: no page is dropped, for other processes read the same file now.
        """
        self.path = path
        self._expected = headers_read_from
        self._fd = os.open(path, os.O_RDONLY)
        self._keeps_pages = keep_pages or _is_cached(self._fd, os.fstat(self._fd).st_size)

    def read_into(self, offset: int, targets: Sequence[tuple[str, memoryview]]) -> None:
        """Fill the buffers, one after the other, with the bytes from `offset` on; each is named after its tensor.

        Raises StoreError where the system cannot read them, or the file ends before them.
        """
        pending, position = [buffer for _, buffer in targets], offset
        while pending:
            key = targets[len(targets) - len(pending)][0]
            try:
                count = os.preadv(self._fd, pending, position)
            except OSError as error:
                raise StoreError(f"{self.path}: {key} could not be read: {error.strerror}") from error
            if count == 0:
                raise StoreError(f"{self.path} ends at byte {position}, before the end of {key}: it was truncated")
            position += count
            pending = _after(pending, count)
        if not self._keeps_pages:
            _drop_pages(self._fd, offset, position)

    def refuse_change(self, key: str) -> None:
        """Raise StoreError where the path no longer holds what it held before its header was read.

        To be asked after a read: what was read before the answer is then known to be of one file.
        """
        try:
            now = identity(self.path)
        except OSError as error:
            raise StoreError(
                f"{self.path} is gone ({error.strerror}), needed for {key}: restore it, restart"
            ) from error
        if now != self._expected:
            raise StoreError(f"{self.path} was changed or replaced while in use: {key} cannot be trusted; restart")

    def close(self) -> None:
        """Idempotent. No read may be running: its descriptor could become another file's."""
        if self._fd >= 0:
            if not self._keeps_pages:
                _drop_pages(self._fd, 0, os.fstat(self._fd).st_size)
            os.close(self._fd)
            self._fd = -1


def _after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What is left of the buffers when the first `count` bytes are filled."""
    for i, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[i + 1 :]]
        count -= len(buffer)
    return []


def _is_cached(fd: int, size: int, num_samples: int = 64) -> bool:
    """Whether of bytes spread over the file most come without waiting for the disk.

    Not all of them: systems that take back idle pages (DAMON) leave small holes in a file that is in use.
    """
    if not hasattr(os, "RWF_NOWAIT"):  # not Linux
        return False
    there, chunk = 0, bytearray(1)
    for i in range(num_samples):
        try:
            there += os.preadv(fd, [chunk], size * (2 * i + 1) // (2 * num_samples), os.RWF_NOWAIT)
        except BlockingIOError:  # it would wait
            continue
        except OSError:  # the file system cannot tell (EOPNOTSUPP)
            return False
    return there > num_samples // 2


def _drop_pages(fd: int, start: int, end: int) -> None:
    """Drop the pages of a stretch from the page cache, those it shares with its neighbours too."""
    if hasattr(os, "posix_fadvise"):  # not macOS
        page = os.sysconf("SC_PAGE_SIZE")
        start, end = start // page * page, -(-end // page) * page
        os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)
