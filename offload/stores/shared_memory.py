"""Memory that the ranks of a node share, and that is gone when the last of them is, however they end."""

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import tempfile
import weakref
from collections.abc import Sequence

import torch

from offload.stores.page_locks import PageLocks, chunks, runtime_of
from weights.agreement import Group, on_all_ranks, on_first_rank, rank_in
from weights.modes import refuse_inference_mode

logger = logging.getLogger(__name__)

_F_SEAL_FUTURE_WRITE = 0x0010  # of linux/fcntl.h; the fcntl module does not name it


class SharedMemory:
    """`bytes`: uint8, the same memory on every rank of `group`, exactly as large as asked for.

    It has no name that could outlive it: on Linux it is a memfd, which the other ranks open through the first one's
    /proc/<pid>/fd, elsewhere a file that is unlinked before anything is in it. So the system takes it back with the
    last process that maps it, also after SIGKILL. No page is taken before it is written to.

    Making one is a collective over the group (None: this process alone).
    """

    bytes: torch.Tensor

    def __init__(self, num_bytes: int, group: Group) -> None:
        refuse_inference_mode("make shared memory")
        self._fd = -1
        self._locks: PageLocks | None = None
        path = on_first_rank(lambda: self._create(num_bytes), group)
        try:
            on_all_ranks(lambda: self._open(path, num_bytes), group)
        except BaseException:  # also Ctrl-C: nobody has this object yet who could close it
            self.close()
            raise
        finally:
            if rank_in(group) == 0 and not path.startswith("/proc/"):
                os.unlink(path)

    def _create(self, num_bytes: int) -> str:
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create("dit-runner", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            path = f"/proc/{os.getpid()}/fd/{self._fd}"
        else:
            self._fd, path = tempfile.mkstemp(prefix="dit-runner-")
        os.ftruncate(self._fd, num_bytes)
        return path

    def _open(self, path: str, num_bytes: int) -> None:
        if self._fd < 0:
            self._fd = os.open(path, os.O_RDWR)
        # The tensor keeps the mapping: it goes when the last view of it does.
        self.bytes = torch.frombuffer(mmap.mmap(self._fd, num_bytes), dtype=torch.uint8)

    def protect(self) -> None:
        """Let nobody write any more: in this process a write is a SIGSEGV, and no other can map it to write."""
        if hasattr(os, "memfd_create"):
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            try:
                fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE)
            except OSError as error:
                if error.errno != errno.EINVAL:  # Linux before 5.1 has no such seal; mprotect below needs none
                    raise
        libc = ctypes.CDLL(None, use_errno=True)
        start, length = ctypes.c_void_p(self.bytes.data_ptr()), ctypes.c_size_t(self.bytes.numel())
        if libc.mprotect(start, length, mmap.PROT_READ) != 0:  # pages that are locked for a device stay locked
            raise OSError(ctypes.get_errno(), "mprotect of the shared weights")

    def page_lock(self, device: torch.device, sizes: Sequence[int]) -> None:
        """Let the device copy from here at full speed while the host goes on; says so where it cannot.

        `sizes` of the stretches that are copied from, whole pages side by side. Exactly this memory is locked: torch's
        allocator of pinned memory would round it up to a power of two.
        """
        if device.type == "cpu":
            return
        size = f"{self.bytes.numel() / 2**30:.2f} GiB of shared weights"
        reason: str | None = f"there is no call for it on {device.type}"
        if (runtime := runtime_of(device)) is not None:
            self._locks = PageLocks(runtime)
            reason = self._locks.lock(self.bytes.data_ptr(), chunks(sizes))
            # Memory that is unmapped while it is locked would be taken for locked when its address is used again.
            weakref.finalize(self, self._locks.unlock).atexit = False
        if reason is None:
            logger.info("page-locked %s", size)
        else:
            logger.warning("%s stay pageable (%s): copies to the device are slower, and the host waits", size, reason)

    def close(self) -> None:
        """Idempotent. Waits for copies from here."""
        if self._locks is not None:
            self._locks.unlock()
        self.bytes = torch.empty(0, dtype=torch.uint8)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
