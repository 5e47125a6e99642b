"""The failures of a job by what went wrong: ten thousand that have one cause are one entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runner.output.lines import Failure
from runner.report.told import Told

_REQUESTS = 100  # that an entry names
_ENTRIES = 200
_TRACEBACK = 20_000  # characters, the last ones


@dataclass(frozen=True)
class Entry:
    """Tries that failed alike; `traceback` is of the last one."""

    error: str
    message: str
    place: str
    traceback: str
    tries: int
    requests: Sequence[dict[str, Any]]
    num_requests: int
    made_since: int  # of these requests
    last: str  # when, and on which host
    host: str


def entries(told: Told) -> list[Entry]:
    """The cause that most requests failed by first."""
    alike: dict[tuple[str, ...], list[Failure]] = {}
    for failure in told.failures:
        key = (failure.error, failure.stage, failure.component, failure.message.partition("\n")[0])
        alike.setdefault(key, []).append(failure)
    made = {line.id for line in told.made}
    found = sorted((_entry(tries, made) for tries in alike.values()), key=lambda entry: -entry.num_requests)
    return found[:_ENTRIES]


def _entry(tries: Sequence[Failure], made: set[str]) -> Entry:
    last, requests = tries[-1], {failure.id: failure for failure in tries}
    return Entry(
        error=last.error,
        message=last.message,
        place=f"{last.stage}/{last.component}",
        traceback=last.traceback[-_TRACEBACK:],
        tries=len(tries),
        requests=[
            {"id": one.id, "prompt": one.prompt, "seed": one.seed, "tries": one.attempts, "made": one.id in made}
            for one in list(requests.values())[:_REQUESTS]
        ],
        num_requests=len(requests),
        made_since=len(requests.keys() & made),
        last=last.time,
        host=last.host,
    )
