"""Who is told where the time goes while weights move, or tokens inside a component."""

from typing import Any, Protocol

import torch

# A point in time: seconds of `time.perf_counter()`, or an event in the work that was queued on a device.
Moment = float | torch.Event


class Observer(Protocol):
    """Told of what weights or tokens took to move, for one component. From any thread; returns at once and waits
    for nothing."""

    def now(self, stream: Any = None) -> Moment:
        """This moment of what is computed, or of what is queued on a stream."""

    def tell(self, name: str, block: str, began: Moment, ended: Moment, num_bytes: int = 0) -> None:
        """`name` is what happened to the block's weights: "prefetch" (they were copied to the device), "gather" (from
        other ranks), "wait" (what computes stood and waited for them), "release" (they were let go of);
        or "exchange", of no block: tokens of other ranks came."""
