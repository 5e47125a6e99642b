"""What one component takes of a rank and of its node in a placement, and what a pass over its blocks moves."""

from dataclasses import dataclass

from offload.ring import slot_sizes
from runner.config import PlacementConfig, Rest, Share
from runner.plan.sizes import Sizes
from weights.blocks import spread


@dataclass(frozen=True)
class Placed:
    """Bytes, of one rank unless said otherwise.

    On the device: `at_rest` always; while the stage runs `outside` (what is outside the blocks) and `ring` (the window)
    too; while a call runs `gathered` (blocks of other ranks, the running one, FSDP's own buffer, those ahead).
    On the host: `shared` once a node, `slices` for each rank.
    A pass over the blocks brings `to_device` over the link, `exchanged` from other ranks, `read` from disk; what comes
    once a stage, however many passes it has, is in `begin_*`.
    """

    at_rest: int
    outside: int = 0
    ring: int = 0
    gathered: int = 0
    shared: int = 0
    slices: int = 0
    to_device: int = 0
    exchanged: int = 0
    read: int = 0
    begin_to_device: int = 0
    begin_exchanged: int = 0
    begin_read: int = 0
    moves: bool = False

    @property
    def in_stage(self) -> int:
        return self.outside + self.ring


def placed(sizes: Sizes, placement: PlacementConfig, shard: int) -> Placed:
    """`shard`: the ranks that hold one copy of what is sharded. Raises ValueError where there are fewer blocks than are
    to stay."""
    if placement.share is Share.shard and placement.rest is not Rest.disk:
        return _sharded(sizes, placement, shard)
    if placement.rest is Rest.device:
        return Placed(at_rest=sizes.resident)
    return _offloaded(sizes, placement, shard if placement.share is Share.shard else 1)


def _sharded(sizes: Sizes, placement: PlacementConfig, ranks: int) -> Placed:
    resident = set(spread(list(range(len(sizes.sliced))), placement.resident_blocks))
    cut = [rows for index, rows in enumerate(sizes.sliced) if index not in resident]
    whole = sum(sizes.sliced[index].whole for index in resident)
    on_host = placement.rest is Rest.host
    slices = sizes.root.slice(ranks) + sum(rows.slice(ranks) for rows in cut)
    blocks = [rows.gathered(ranks) for rows in cut]
    once = not placement.reshard_after_forward
    ahead = min(placement.prefetch, max(len(cut) - 1, 0))
    # The one that runs, FSDP's buffer of the last gather, and those that are gathered ahead; or all of them, kept.
    gathered = (2 + ahead) * max(blocks, default=0)
    if once:
        gathered = sum(blocks) + max(blocks, default=0)
    if ranks == 1:
        # Nothing is gathered: FSDP copies the block that runs. From the host weight by weight, each of which is there
        # until the next one is.
        gathered = sum(blocks) if once else max(blocks, default=0)
        gathered += 2 * max((rows.largest for rows in cut), default=0) if on_host else 0
    a_pass, root = sum(rows.slice(ranks) for rows in cut), sizes.root.slice(ranks)
    pass_link = a_pass if on_host else 0
    return Placed(
        at_rest=sizes.unsliced + whole + (0 if on_host else slices),
        outside=sizes.root.gathered(ranks),
        gathered=gathered,
        slices=slices if on_host else 0,
        to_device=0 if once else pass_link,
        exchanged=0 if once else (ranks - 1) * a_pass,
        begin_to_device=(root if on_host else 0) + (pass_link if once else 0),
        begin_exchanged=(ranks - 1) * (root + (a_pass if once else 0)),
        moves=True,
    )


def _offloaded(sizes: Sizes, placement: PlacementConfig, readers: int) -> Placed:
    resident = set(spread(list(range(len(sizes.blocks))), placement.resident_blocks))
    streamed = [size for index, size in enumerate(sizes.blocks) if index not in resident]
    window = len(streamed) if placement.window == "all" else int(placement.window)
    ring = sum(slot_sizes(streamed, window)) if streamed else 0
    a_pass = sum(streamed)
    once = window >= len(streamed)  # the ring holds them all, so that they come with the first pass of a stage
    begin = sizes.outside + (a_pass if once else 0)
    a_pass = 0 if once else a_pass
    on_disk = placement.rest is Rest.disk
    return Placed(
        at_rest=sizes.kept + sizes.buffers + sum(sizes.blocks[index] for index in resident),
        outside=sizes.outside,
        ring=ring,
        shared=0 if on_disk else sizes.in_store,
        to_device=a_pass,
        exchanged=a_pass - _part(a_pass, readers),
        read=_part(a_pass, readers) if on_disk else 0,
        begin_to_device=begin,
        begin_exchanged=begin - _part(begin, readers),
        begin_read=_part(begin, readers) if on_disk else 0,
        moves=True,
    )


def _part(num_bytes: int, readers: int) -> int:
    return -(-num_bytes // readers)
