"""Modules whose parameters are on meta, and whose buffers are real."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import accelerate

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_SMALL, _LARGEST = 128 * 2**10, 32 * 2**20  # bytes; where glibc's threshold starts, and the most that it grows to


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Around a constructor: accelerate's, without what it leaves behind in the process's address space.

    A constructor makes each parameter in memory that nobody touches, and then it moves to meta. From glibc's heap such
    pieces are not given back: for a large model tens of GiB of addresses, of which no byte is used. But a fork asks the
    kernel for as much again, and is refused where the machine has less: the encoder of a clip could not be started.
    """
    with _given_back_at_once(), accelerate.init_empty_weights(include_buffers=False):
        yield


@contextmanager
def _given_back_at_once() -> Iterator[None]:
    """Larger pieces are mapped one by one. Afterwards the threshold is where glibc takes it by itself, once a piece of
    that size was freed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST)
