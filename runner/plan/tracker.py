"""Counts the bytes that tensors hold at once, and the FLOPs, of code that runs on tensors real or fake."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch has no formula for this one


class Tracker(TorchDispatchMode):
    """While it is entered: `live`, the bytes of the storages that operators made and that are still there; `peak`, the
    most that was; `flops`, by torch's own formulas for each operator.

    A storage is counted once, however many tensors view it, and until the last of them is gone. What was there before
    (`known`: weights) is not counted.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.flops = 0.0
        self._counted: dict[int, weakref.ref[Any]] = {}
        self._paused = False
        for tensor in known:
            self._count(tensor, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._paused:
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self._count(leaf, leaf.untyped_storage().nbytes())
            if func.overloadpacket is _CPU_ATTENTION:
                self.flops += _of_attention(*(tensor.shape for tensor in args[:3]))
            elif (formula := flop_registry.get(func.overloadpacket)) is not None:
                self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is made meanwhile is not counted."""
        paused, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = paused

    @contextmanager
    def own_peak(self) -> Iterator[Callable[[], int]]:
        """The peak of what runs inside, which the peak outside takes in."""
        outer, self.peak = self.peak, self.live
        try:
            yield lambda: self.peak
        finally:
            self.peak = max(outer, self.peak)

    def reach(self, num_bytes: int) -> None:
        """So many were live at some moment."""
        self.peak = max(self.peak, num_bytes)

    def _count(self, tensor: torch.Tensor, num_bytes: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._counted:
            return
        self._counted[key] = weakref.ref(storage, self._forget(key, num_bytes))
        self.live += num_bytes
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, num_bytes: int) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            self._counted.pop(key, None)
            self.live -= num_bytes

        return forget


def _of_attention(query: torch.Size, key: torch.Size, value: torch.Size) -> float:
    """Scores and their sums: two matrix products. query (B, H, L, D), key and value (B, H, S, D)."""
    batch, heads, length, dim = query
    return 2.0 * batch * heads * length * key[2] * (dim + value[3])
