"""A component of a pipeline: what it is called, the live module, the stage it works in, and how it is placed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

import offload
import sharding
from runner.components.context import context_of
from runner.components.look_ahead import Moves
from runner.config import Rest, Share
from weights.agreement import Group, size_of
from weights.modes import normal_mode

# Pipelines call components through these, besides calling them; everything else they touch is glue.
METHODS = ("encode", "decode", "get_text_features", "get_image_features")


@dataclass(frozen=True)
class Placement:
    """Read off a live module: who holds the weights (`ranks` of them one copy), where they wait, and the device types
    of the tensors that are there now."""

    share: Share
    rest: Rest
    ranks: int
    replicas: int
    devices: str

    def __str__(self) -> str:
        if self.share is Share.replicate:
            return f"{self.share.value}, {self.rest.value}"
        copies = f" x {self.replicas}" if self.replicas > 1 else ""
        return f"{self.share.value} {self.ranks}{copies}, {self.rest.value}"


@dataclass(frozen=True)
class Component:
    name: str
    module: nn.Module
    stage: str

    @property
    def is_sharded(self) -> bool:
        """Whether ranks share its weights."""
        return sharding.is_sharded(self.module) or self.readers is not None

    @property
    def context(self) -> int:
        """How many ranks share out the tokens of its calls."""
        context = context_of(self.module)
        return 1 if context is None else context.size

    @property
    def is_called_together(self) -> bool:
        """Whether ranks exchange something inside its calls, weights or tokens."""
        return self.is_sharded or self.context > 1

    @property
    def readers(self) -> Group:
        """The ranks that read its weights together, whenever they come up."""
        offloader = offload.offloader_of(self.module)
        return None if offloader is None else offloader.store.readers

    @property
    def placement(self) -> Placement:
        devices = ",".join(sorted({str(t.device) for t in self.module.parameters()})) or "none"
        found = sharding.sharding_of(self.module)
        if found is not None:
            rest = Rest.host if found.rests_on_host else Rest.device
            return Placement(Share.shard, rest, found.shard, found.replicate, devices)
        rest = Rest.device
        if (offloader := offload.offloader_of(self.module)) is not None:
            rest = Rest(offloader.store.rest)
        if (size := size_of(self.readers)) > 1:
            return Placement(Share.shard, rest, size, dist.get_world_size() // size, devices)
        return Placement(Share.replicate, rest, 1, 1, devices)

    @property
    def num_bytes(self) -> int:
        """Of parameters and buffers that this rank holds now, what waits in a store for its use not counted."""
        offloader = offload.offloader_of(self.module)
        return offloader.bytes_on_device if offloader else sharding.bytes_per_rank(self.module)

    @property
    def moves(self) -> Moves:
        """What `look_ahead` goes by."""
        offloader = offload.offloader_of(self.module)
        if offloader is None:
            return Moves(self.stage, 0, None, self.is_sharded)
        moving = offloader.bytes_bound - offloader.bytes_at_rest
        return Moves(self.stage, moving, offloader.bytes_of_ring, self.is_sharded)

    def prefetch_after(self, other: "Component") -> None:
        """Start to fetch the blocks that an offloaded component will run first, as soon as all that the running stage
        of the other one needs is on its way: one engine fetches for both, one copy after the other. Returns at once."""
        if (offloader := offload.offloader_of(self.module)) is None:
            return
        if (earlier := offload.offloader_of(other.module)) is None:
            offloader.prefetch_head()
        else:
            earlier.when_all_is_asked_for(offloader.prefetch_head)

    def bring_up(self) -> None:
        """What is outside the blocks, as a call of the component does; a collective where it is sharded."""
        with normal_mode():
            if isinstance(self.module, FSDPModule):
                sharding.unshard(self.module)
            elif (offloader := offload.offloader_of(self.module)) is not None:
                offloader.begin()

    @property
    def parts(self) -> list[nn.Module]:
        """The modules with weights that its own calls bring up, and that lie outside the blocks, which come by
        themselves; none where nothing moves."""
        offloader = offload.offloader_of(self.module)
        if offloader is None and not isinstance(self.module, FSDPModule):
            return []
        blocks = set(offloader.blocks.values()) if offloader else set()
        return list(_parts(self.module, lambda part: part in blocks or isinstance(part, FSDPModule)))

    def release(self) -> None:
        """Free the weights that calls brought up, if any moved. Not a collective."""
        if isinstance(self.module, FSDPModule):
            sharding.reshard(self.module)
        elif (offloader := offload.offloader_of(self.module)) is not None:
            offloader.end()


def _parts(module: nn.Module, is_block: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
    for part in module.children():
        if not is_block(part):
            if any(True for _ in part.parameters(recurse=False)):
                yield part
            yield from _parts(part, is_block)
