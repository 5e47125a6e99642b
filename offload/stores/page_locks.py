"""Host memory that a device copies from at full speed, while the host goes on: page-locked where it lies."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch

# Some drivers refuse one registration of a whole large store.
CHUNK_BYTES = 16 * 2**30
_PORTABLE = 1  # cudaHostRegisterPortable of cuda_runtime_api.h: locked for every context of the process


class Runtime(Protocol):
    """What page-locking takes of a device's runtime."""

    def register(self, address: int, num_bytes: int) -> Any:
        """Page-lock; returns an error that is 0 as an int where it did."""

    def unregister(self, address: int) -> Any: ...

    def error_string(self, error: Any) -> str: ...

    def clear_error(self) -> None:
        """The runtime keeps the error of a call that failed, for the next kernel to raise."""

    def synchronize(self) -> None: ...


class CudaRuntime:
    """Of cuda, and of what calls itself so (ROCm)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def register(self, address: int, num_bytes: int) -> Any:
        with torch.cuda.device(self.device):
            return torch.cuda.cudart().cudaHostRegister(address, num_bytes, _PORTABLE)

    def unregister(self, address: int) -> Any:
        with torch.cuda.device(self.device):
            return torch.cuda.cudart().cudaHostUnregister(address)

    def error_string(self, error: Any) -> str:
        return str(torch.cuda.cudart().cudaGetErrorString(error))

    def clear_error(self) -> None:
        # cudaGetLastError is not among the calls that torch hands out; torch makes it after each kernel of its own.
        with suppress(RuntimeError):
            torch.ones(1, device=self.device)
        torch.ones(1, device=self.device)  # whatever else is wrong with the device, it is raised here

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


def runtime_of(device: torch.device) -> Runtime | None:
    """None where torch has no call that page-locks memory which is there already."""
    return CudaRuntime(device) if device.type == "cuda" else None


def chunks(sizes: Iterable[int], limit: int = CHUNK_BYTES) -> list[int]:
    """Sizes that lie side by side, as few sums of neighbours, none above the limit but where one size alone is.

    A copy must not reach from one registration into the next, so they begin and end where a unit does.
    """
    found: list[int] = []
    for size in filter(None, sizes):
        if found and found[-1] + size <= limit:
            found[-1] += size
        else:
            found.append(size)
    return found


class PageLocks:
    """What of this process's memory was page-locked through `runtime`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._addresses: list[int] = []

    def lock(self, address: int, sizes: Sequence[int]) -> str | None:
        """Lock the memory from `address` on, in chunks of these sizes: all of them, or none. Returns why not.

        `address` and all sizes but the last are whole pages.
        """
        for i, num_bytes in enumerate(sizes):
            if int(error := self._runtime.register(address, num_bytes)):
                self._unregister()  # before the device hears of this memory, so no copy can be under way
                reason = self._runtime.error_string(error)
                self._runtime.clear_error()
                return f"part {i + 1} of {len(sizes)}, {num_bytes} bytes: {reason}"
            self._addresses.append(address)
            address += num_bytes
        return None

    def unlock(self) -> None:
        """After the copies that are under way. Idempotent."""
        if self._addresses:
            self._runtime.synchronize()
            self._unregister()

    def _unregister(self) -> None:
        failed = False
        while self._addresses:
            failed |= int(self._runtime.unregister(self._addresses.pop())) != 0
        if failed:  # the memory stays locked until the process ends; what runs next must not fail for it
            self._runtime.clear_error()
