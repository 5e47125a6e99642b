"""The machines that a job is planned for: how many, what they hold, how fast they are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from offload.engines.stream import NUM_STAGING_BUFFERS, STAGING_BYTES
from runner.errors import UserError

GIB = 2**30
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": GIB, "TIB": 2**40}


@dataclass(frozen=True)
class Machine:
    """`nodes` alike, each with so many `gpus`: a rank for each. Bytes of memory of a GPU and of a node.

    `is_host`: ranks compute on the CPU, so that what is on the device is in the node's memory. What no placement
    decides is taken off: `reserved` of a device (its context, the libraries' workspaces), `process` of the host for
    each rank (Python and the libraries).
    """

    gpus: int
    nodes: int
    device_memory: int
    host_memory: int
    is_host: bool = False
    reserved: int = 0
    process: int = 0

    @property
    def ranks(self) -> int:
        return self.gpus * self.nodes

    @property
    def staging(self) -> int:
        """Page-locked memory of a rank that reads what it brings to its device."""
        return 0 if self.is_host else NUM_STAGING_BUFFERS * STAGING_BYTES


@dataclass(frozen=True)
class Rates:
    """FLOP/s of a rank in the model's dtype; bytes/s: of a rank's link to the host, of a node's disk, between the ranks
    of a node, and between nodes for each rank. `sources`: of those that are not assumed, where they are from."""

    flops: float = 400e12
    link: float = 40e9
    disk: float = 5e9
    within: float = 200e9
    between: float = 25e9
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """For people: which are measured, stated, assumed."""
        by: dict[str, list[str]] = {}
        for name in RATES:
            by.setdefault(self.sources.get(name, "assumed"), []).append(name)
        return "; ".join(f"{source}: {', '.join(names)}" for source, names in by.items())


RATES = ("flops", "link", "disk", "within", "between")


def parse_bytes(text: str) -> int:
    """`80GiB`, `80GB` or a number of bytes. Raises UserError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    unit = match[2].upper() if match else ""
    if match is None or (unit and unit not in _UNITS):
        raise UserError(f"{text!r} is no size of memory; write 80GiB, 80GB or a number of bytes")
    return int(float(match[1]) * _UNITS[unit or "B"])


def size(num_bytes: float) -> str:
    """For people: 1.20 GiB, 36.9 MiB, 4.0 KiB."""
    if num_bytes >= GIB / 10:
        return f"{num_bytes / GIB:.2f} GiB"
    unit, name = (2**20, "MiB") if num_bytes >= 2**20 / 10 else (2**10, "KiB")
    return f"{num_bytes / unit:.1f} {name}"
