"""Tells what gathering a sharded module's weights took.

[Note: how gathers are seen] FSDP has no public place to see a gather begin and end. Its groups of weights have methods
that issue one and wait for it; they are wrapped on the instance, which changes nothing of the order of work. On a
device with streams both return at once, and the gather lies between two events on FSDP's own stream. Without (gloo on
the host) the first returns when the gather is over: then whoever computes has waited for all of it.
"""

import functools
from collections.abc import Callable
from time import perf_counter
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

from weights.observer import Observer
from weights.overrides import Overrides


def observe_gathers(module: nn.Module, observer: Observer, overrides: Overrides) -> None:
    """From now on the observer is told of each gather, wait and release of the weights of a module that `shard`
    returned, until the overrides are undone."""
    for name, inner in module.named_modules():
        if isinstance(inner, FSDPModule):
            for group in inner._get_fsdp_state()._fsdp_param_groups:
                overrides.set(group, "unshard", _gathering(group, name, observer))
                overrides.set(group, "wait_for_unshard", _waiting(group, name, observer))
                overrides.set(group, "reshard", _releasing(group, name, observer))


def _gathering(group: Any, name: str, observer: Observer) -> Callable[..., None]:
    unshard, num_bytes = group.unshard, _bytes_received(group)

    @functools.wraps(unshard)
    def gather(async_op: bool = False) -> None:
        if group._all_gather_result is not None or group.is_unsharded:
            return unshard(async_op)
        queued = group.device.type != "cpu"
        stream = group.comm_ctx.get_all_gather_streams(async_op, group._training_state)[1] if queued else None
        began = observer.now(stream)
        unshard(async_op)
        ended = observer.now(stream)
        observer.tell("gather", name, began, ended, num_bytes)
        if not queued:
            observer.tell("wait", name, began, ended)

    return gather


def _waiting(group: Any, name: str, observer: Observer) -> Callable[[], None]:
    wait_for_unshard = group.wait_for_unshard

    @functools.wraps(wait_for_unshard)
    def wait() -> None:
        if group._all_gather_result is None:
            return wait_for_unshard()
        began = observer.now()
        wait_for_unshard()
        observer.tell("wait", name, began, observer.now())

    return wait


def _releasing(group: Any, name: str, observer: Observer) -> Callable[[], None]:
    reshard = group.reshard

    @functools.wraps(reshard)
    def release() -> None:
        was_up, began = group.is_unsharded, perf_counter()
        reshard()
        if was_up and not group.is_unsharded:
            observer.tell("release", name, began, perf_counter())

    return release


def _bytes_received(group: Any) -> int:
    """From the other ranks; where the slices rest on the host, this rank's own goes up as well."""
    ranks = group._all_gather_process_group.size()
    own = sum(p._sharded_param_data.nbytes for p in group.fsdp_params)
    on_host = any(p.offload_to_cpu for p in group.fsdp_params)
    return own * (ranks - 1 + on_host)
