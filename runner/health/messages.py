"""What ranks tell each other about the job's health: a line of JSON each."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from runner.health.fault import Fault, Status


@dataclass(frozen=True)
class Heartbeat:
    status: Status


@dataclass(frozen=True)
class Stop:
    """Some rank was asked to stop."""

    reason: str


@dataclass(frozen=True)
class Report:
    """To rank 0: the job cannot go on. `is_echo`: another rank may be the cause."""

    fault: Fault
    is_echo: bool


@dataclass(frozen=True)
class End:
    """Every rank ends now, with this exit code. `deaf`: ranks that will not hear of it. `why`: the last line, for the
    report of each rank's torchrun, which picks any of its ranks as the cause."""

    code: int
    deaf: tuple[Status, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Bye:
    """This rank is done."""


@dataclass(frozen=True)
class Asks:
    """To rank 0, for the next requests, where they are handed out one by one. Ids: of those whose results are recorded
    since; of those whose try does not count; of those that this rank makes again before others."""

    over: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()
    again: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """The ids of the requests that a rank makes now; none: there are no more."""

    ids: tuple[str, ...] = ()


Message = Heartbeat | Stop | Report | End | Bye | Asks | Given


def encode(message: Message) -> bytes:
    return json.dumps({"kind": type(message).__name__, **asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Message | None:
    """None for what is no message of ours: half a line of a peer that died, or a stranger's."""
    try:
        fields = json.loads(line)
        return _read(fields.pop("kind"), fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _read(kind: str, fields: dict[str, Any]) -> Message:
    match kind:
        case "Heartbeat":
            return Heartbeat(_status(fields["status"]))
        case "Stop":
            return Stop(str(fields["reason"]))
        case "Report":
            return Report(Fault(**fields["fault"]), bool(fields["is_echo"]))
        case "End":
            return End(int(fields["code"]), tuple(map(_status, fields["deaf"])), str(fields["why"]))
        case "Bye":
            return Bye()
        case "Asks":
            return Asks(tuple(fields["over"]), tuple(fields["withdrawn"]), tuple(fields["again"]))
        case "Given":
            return Given(tuple(fields["ids"]))
    raise ValueError(kind)


def _status(fields: dict[str, Any]) -> Status:
    """JSON has no tuples."""
    return Status(**{**fields, "steps": tuple(map(tuple, fields["steps"]))})
