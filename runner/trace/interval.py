"""What a trace is made of: intervals, each on a lane of its rank. docs/trace.md describes them, and the files."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Self

FORMAT = 1  # of the files


class Lane(StrEnum):
    """Who was busy. Those of a lane nest or follow each other; those of two lanes may lie side by side."""

    stage = "stage"  # encode, denoise, decode: of all requests that are made together
    compute = "compute"  # the thread or stream that runs the pipeline: requests, components' calls, blocks
    wait = "wait"  # the same, while it stood and waited: each lies inside an interval of `compute`, or between two
    prefetch = "prefetch"  # weights on their way to the device: copies, and gathers over ranks
    exchange = "exchange"  # activations and results on their way between the ranks of a team
    write = "write"  # outputs on their way to their files


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Something that a rank did from `begin` to `end`, in seconds since the trace began, on the clock of rank 0."""

    name: str
    lane: Lane
    begin: float
    end: float
    stage: str = ""  # encode, denoise, decode
    component: str = ""
    block: str = ""  # the module in the component; "" for all of it, or for what is outside its blocks
    request: str = ""  # its id; "" for what serves several
    step: int | None = None  # of the request's denoising, from 0
    num_bytes: int = 0  # moved
    goes_on: bool = False  # it paused here, and another interval is the rest of it

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def to_json(self) -> dict[str, Any]:
        """Without what there is none of; microseconds are kept."""
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        said |= {"begin": round(self.begin, 6), "end": round(self.end, 6)}
        return {name: value for name, value in said.items() if value or (name in _MAY_BE_ZERO and value is not None)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self | None:
        """None where the object is no interval: the head of a file, or a line of another version."""
        try:
            said = {one.name: value[one.name] for one in fields(cls) if one.name in value}
            return cls(**said | {"lane": Lane(value["lane"])})
        except (KeyError, TypeError, ValueError):
            return None


_MAY_BE_ZERO = ("begin", "end", "step")


@dataclass(frozen=True, kw_only=True)
class Head:
    """The first line of a rank's file: whose it is, when its second 0 was (of the day, by rank 0's clock), and how far
    its clock may be off that of rank 0."""

    rank: int
    world_size: int
    device: str
    began: float  # seconds since 1970
    clock_error: float = 0.0  # seconds
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self | None:
        """None where the object is no head of this format."""
        try:
            head = cls(**{one.name: value[one.name] for one in fields(cls) if one.name in value})
        except TypeError:  # a field is missing
            return None
        return head if head.format == FORMAT else None
