"""Adapters merged into the weights that a module holds on this rank: whole ones, or its slices of sharded ones."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lora.arithmetic import write_merged
from lora.edits import Edits, Terms
from weights.modes import normal_mode

ReadBase = Callable[[str, slice, slice], torch.Tensor]
"""A weight's name, and the rows and columns that are wanted of it -> their base, on the host."""


class MergedWeights:
    """The weights of one module and what is merged into them. Each rank edits its own slices; nothing is gathered.

    Weights are written in place, so that whoever holds their memory (FSDP, a captured graph) sees the change. What is
    merged always starts from the base. Where `base` can read it again, and gave the live weight's own bits before its
    first edit, it is read each time; else it is kept here, in host memory, from the first edit of a weight on.

    `device` is where the arithmetic runs, by default where the weights are; see [Note: one device] in
    lora/arithmetic.py. Slices that rest on the host go there and back.

    Memory on top of the weights: on the host, a copy of those that were ever edited (none with `base`); on the device
    while a weight is written, its slice once more where the base lies elsewhere, its factors and two tiles in fp32 (see
    [Note: tiles]).
    """

    def __init__(self, module: nn.Module, *, base: ReadBase | None = None, device: torch.device | None = None) -> None:
        self._module = module
        self._read = base
        self._device = device
        self._read_again: set[str] = set()
        self._kept: dict[str, torch.Tensor] = {}
        self._edits = Edits()

    def set(self, edits: Edits) -> None:
        """Make the weights base + edits, whatever was merged before; without edits they get their own bits back.

        May be called in any mode, between forwards. All or nothing: if one weight fails, those written before it go
        back to what they were. Raises RuntimeError, before any write, for a weight that is not there to be written:
        gathered, offloaded, or on meta.
        """
        names = [n for n in {**self._edits.terms, **edits.terms} if edits.of(n) != self._edits.of(n)]
        with normal_mode():
            self._check(names, edits)
            written = []
            try:
                for name in names:
                    part = self._part(name)
                    written.append(name)
                    part.write(edits.of(name))
            except BaseException:  # also Ctrl-C: half of a merge would make other pictures without a word
                for name in written:
                    self._part(name).write(self._edits.of(name))
                raise
        self._edits = edits

    def close(self) -> None:
        """Take every edit out and let go of the base copies."""
        self.set(Edits())
        self._kept.clear()

    @property
    def kept_bytes(self) -> int:
        """Of the base copies in host memory."""
        return sum(tensor.nbytes for tensor in self._kept.values())

    def _check(self, names: list[str], edits: Edits) -> None:
        gathered = any(
            not group.is_sharded
            for inner in self._module.modules()
            if isinstance(inner, FSDPModule)
            for group in inner._get_fsdp_state()._fsdp_param_groups
        )
        if gathered:
            raise RuntimeError(f"{type(self._module).__name__} has gathered weights; reshard it before editing them")
        for name in names:
            weight = self._module.get_parameter(name)
            if weight.is_meta or any(tuple(weight.shape) != change.shape for change, _ in edits.of(name)):
                raise RuntimeError(
                    f"{name} is {list(weight.shape)} on {weight.device}: its weights are not here to edit"
                )
            if isinstance(weight, DTensor):
                _refuse_layout(name, weight)

    def _part(self, name: str) -> "_Part":
        local, origin = self._writable(name)
        return _Part(local, self._base(name, local, origin).to(self._device or local.device), origin)

    def _base(self, name: str, local: torch.Tensor, origin: tuple[int, int]) -> torch.Tensor:
        """Of this rank's part `local` of a weight, which holds it still when it is asked for the first time."""
        if self._read is not None and name not in self._kept:
            rows, columns = (slice(start, start + size) for start, size in zip(origin, local.shape, strict=False))
            base = self._read(name, rows, columns).to(local.dtype)
            if name in self._read_again or _same_bits(base, local):
                self._read_again.add(name)
                return base
        if name not in self._kept:
            self._kept[name] = torch.empty_like(local, device="cpu").copy_(local)
        return self._kept[name]

    def _writable(self, name: str) -> tuple[torch.Tensor, tuple[int, int]]:
        """This rank's part of a weight, as a normal tensor, and where in the whole it begins.

        An inference tensor may not be written outside inference mode, nor ever become a normal one; so the module gets
        a copy in its place, once.
        """
        weight = self._module.get_parameter(name)
        if isinstance(weight, DTensor):
            _, offset = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
            return weight.to_local(), (offset[0], offset[1])
        if weight.is_inference():
            owner, _, attribute = name.rpartition(".")
            weight = nn.Parameter(torch.empty_like(weight).copy_(weight), requires_grad=weight.requires_grad)
            setattr(self._module.get_submodule(owner), attribute, weight)
        return weight.data, (0, 0)


@dataclass(frozen=True)
class _Part:
    """What this rank holds of a weight, its base on the device of the arithmetic, and the row and column of the whole
    that both begin at."""

    local: torch.Tensor
    base: torch.Tensor
    origin: tuple[int, int]

    def write(self, terms: Terms) -> None:
        if self.local.device == self.base.device:
            write_merged(self.local, self.base, terms, self.origin)
        else:  # then the base is a copy, made to be written
            self.local.copy_(write_merged(self.base, self.base, terms, self.origin))


def _same_bits(base: torch.Tensor, local: torch.Tensor) -> bool:
    return torch.equal(base.contiguous().view(torch.uint8), local.cpu().contiguous().view(torch.uint8))


def _refuse_layout(name: str, weight: DTensor) -> None:
    for placement in weight.placements:
        by_rows_or_columns = type(placement) is Shard and placement.dim < 2
        if not by_rows_or_columns and not isinstance(placement, Replicate):
            raise RuntimeError(f"{name} is laid out as {weight.placements}; only Shard(0), Shard(1) and Replicate are")
    if weight.to_local().is_inference():
        raise RuntimeError(f"{name} was sharded inside inference mode; load and shard it in normal mode")
