"""Where the weights of an offloaded component rest, unit by unit: what the host and the disk store have in common."""

from collections.abc import Mapping
from typing import Literal, Protocol

import torch

from offload.stores.packing import ALIGNMENT, Packing
from weights.agreement import Group
from weights.weight_file import StoreError as StoreError


class Store(Protocol):
    """The weights as the files hold them. Read-only; shared by every user of the component on this node."""

    rest: Literal["host", "disk"]
    """Where the weights wait."""

    readers: Group
    """The ranks that read a unit together, so that a read is a collective, in the thread that copies; None where each
    rank reads for itself."""

    packings: Mapping[str, Packing]
    """The units by name, such as "blocks.3"; "" is all that is outside the streamed units."""

    def view(self, unit: str) -> torch.Tensor | None:
        """The unit's packed bytes where they rest in host memory, uint8 (num_bytes,); None where they must be read."""

    def read(self, unit: str, out: torch.Tensor, start: int = 0) -> None:
        """Fill `out`, uint8 in host memory, with the unit's packed bytes from `start` on: all of them, or a stretch
        between multiples of ALIGNMENT. Blocks; runs in any thread.

        Raises StoreError, naming file and tensor.
        """

    def close(self) -> None:
        """Let go of mappings, files and threads. Idempotent."""


def fill_host(store: Store, unit: str, out: torch.Tensor) -> None:
    """Copy or read the unit's bytes into `out`, uint8 (num_bytes,) in host memory."""
    view = store.view(unit)
    if view is None:
        store.read(unit, out)
    else:
        out.copy_(view)


def check_stretch(packing: Packing, out: torch.Tensor, start: int) -> None:
    """Tensors lie on multiples of ALIGNMENT, so that no stretch between two of these cuts an element."""
    end = start + out.numel()
    assert out.dtype == torch.uint8 and start % ALIGNMENT == 0
    assert end == packing.num_bytes or (end < packing.num_bytes and end % ALIGNMENT == 0)
