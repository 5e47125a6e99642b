"""Which rank keeps a job from getting on: read off what the other ranks last said."""

import os
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from runner.health.fault import Fault, Status
from runner.health.links import Link
from weights.agreement import this_node

SILENCE = 4.0  # seconds without a heartbeat after which a rank may be why a collective has failed


def silent_rank(links: Sequence[Link], seconds: float) -> Fault | None:
    """The rank that has said nothing for the longest, if for more than `seconds`."""
    link = min((link for link in links if not link.said_bye), key=lambda link: link.heard, default=None)
    if link is None or time.monotonic() - link.heard <= seconds:
        return None
    silence = f"no sign of life for {time.monotonic() - link.heard:.0f} s"
    return Fault.at(link.status, f"{silence} (stopped, or its node or network is lost)", by_request=True)


def stuck_rank(states: Sequence[Status], seconds: float) -> Fault | None:
    """The rank that has stood still for the longest, if for more than `seconds`."""
    slowest = max(states, key=lambda state: state.standstill)
    if slowest.standstill <= seconds:
        return None
    cause = f"stuck: no progress for {slowest.standstill:.0f} s (job.timeout_seconds)"
    return Fault.at(slowest, cause, by_request=True)


def deaf_ranks(links: Iterable[Link]) -> tuple[Status, ...]:
    """The last state of each rank that would not hear of the job's end."""
    return tuple(link.status for link in links if not link.said_bye and time.monotonic() - link.heard > SILENCE)


def kill_here(deaf: Iterable[Status]) -> None:
    """End those of the deaf ranks that are on this node: torchrun would wait 30 s for them."""
    for status in deaf:
        if status.node and status.node == this_node():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(status.pid, signal.SIGKILL)
