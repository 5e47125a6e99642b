"""Whether a component fits where it is to be, asked before any memory is taken for its weights."""

import torch
from torch import nn

import offload
import sharding
from offload.ring import slot_sizes
from offload.units import BUFFERS, OUTSIDE
from runner.config import PlacementConfig
from weights.room import NoRoom, require_room


def require_room_whole(module: nn.Module, device: torch.device, num_ranks: int, name: str) -> None:
    """Raise NoRoom where a module, with meta weights, does not fit whole: into the memory of the device, or where that
    is the host's, as often as there are ranks on this node."""
    num_bytes = sharding.bytes_per_rank(module)
    if device.type == "cpu":
        elsewhere = {"share: shard": num_bytes, "rest: host": num_bytes} if num_ranks > 1 else {}
        elsewhere["rest: disk"] = num_ranks * _bytes_from_disk(module)
        require_room(num_ranks * num_bytes, f"{name} (rest: device, on {num_ranks} rank(s))", elsewhere)
        return
    _require_on_device(num_bytes, device, f"{name} (rest: device)", "use rest: host or disk, or share: shard")


def require_room_for_slices(num_bytes: int, on_node: int, device: torch.device, name: str, *, on_host: bool) -> None:
    """Raise NoRoom where this rank's slices (`num_bytes`; `on_node` with those of the other ranks there) do not fit."""
    if on_host or device.type == "cpu":
        rest = "host" if on_host else "device"
        require_room(on_node, f"{name} (share: shard, rest: {rest})", {})
    else:
        _require_on_device(num_bytes, device, f"{name} (share: shard)", "use rest: host, or more ranks")


def _require_on_device(num_bytes: int, device: torch.device, what: str, fix: str) -> None:
    free = free_on(device)
    if free is not None and num_bytes > free:
        raise NoRoom(
            f"{what} needs {num_bytes / 2**30:.2f} GiB of {device}, which has {free / 2**30:.2f} GiB left: {fix}"
        )


def _bytes_from_disk(module: nn.Module) -> int:
    """What it would take of a rank with the default window: that, and what is outside the blocks."""
    sizes = {unit: sum(t.nbytes for t in tensors.values()) for unit, tensors in offload.plan_units(module).items()}
    outside = sizes.pop(OUTSIDE) + sizes.pop(BUFFERS, 0)
    window = PlacementConfig().window
    return outside + (sum(slot_sizes(list(sizes.values()), int(window))) if sizes else 0)


def free_on(device: torch.device) -> int | None:
    """What the device has, and what its allocator keeps of it for the next who asks; None where torch cannot tell."""
    try:
        free, _ = torch.accelerator.get_memory_info(device)
    except (RuntimeError, NotImplementedError, AttributeError):  # torch's answers for a backend without it (mps)
        return None
    return free + torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
