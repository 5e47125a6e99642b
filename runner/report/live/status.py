"""How a running job stands: made by rank 0 once a second from what all ranks tell, and written as status.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from runner.output.folder import Folder
from runner.output.write import read_json, write_whole

PERIOD = 1.0  # seconds between two


@dataclass(frozen=True)
class RankStatus:
    """What a rank does, as it told `ago` seconds before. `steps`: of each request in the making."""

    rank: int
    host: str = ""
    stage: str = ""
    component: str | None = None
    request: str | None = None
    prompt: str | None = None
    standstill: float = 0.0  # seconds without getting on
    steps: Sequence[tuple[str, int, int]] = ()
    made: int = 0
    failed: int = 0
    host_bytes: int = 0
    device_bytes: int = 0
    ago: float = 0.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "RankStatus":
        return _known(cls, values)

    @property
    def place(self) -> str:
        return self.stage if self.component is None else f"{self.stage}/{self.component}"


@dataclass(frozen=True)
class JobStatus:
    """`time` and `began` are seconds of the epoch. Requests are counted over all runs of the folder, those with `now`
    in this run; `total` is 0 while it is not known."""

    run: str
    time: float
    began: float
    total: int = 0
    made: int = 0
    failed: int = 0
    made_now: int = 0
    failed_now: int = 0
    rate: float | None = None  # requests a second
    seconds_left: float | None = None
    note: str = ""
    stopping: str | None = None
    ranks: Sequence[RankStatus] = field(default_factory=tuple)

    @property
    def left(self) -> int:
        return max(0, self.total - self.made - self.failed)

    @property
    def under_way(self) -> float:
        """How much of the requests in the making is done, in requests."""
        running = {id: done / total for rank in self.ranks for id, done, total in rank.steps if total}
        return sum(min(1.0, done) for done in running.values())

    @classmethod
    def read(cls, folder: Folder) -> "JobStatus | None":
        """The last one; None where there is none, or none that can be read."""
        told = read_json(folder.status)
        try:
            ranks = tuple(RankStatus.of(rank) for rank in told.pop("ranks", []))
            return _known(cls, {**told, "ranks": ranks})
        except (TypeError, AttributeError):
            return None


class StatusFile:
    """Writes each over the one before."""

    def __init__(self, folder: Folder) -> None:
        self._path = folder.status

    def __call__(self, status: JobStatus) -> None:
        text = json.dumps(asdict(status), ensure_ascii=False)
        write_whole(self._path, lambda temp: temp.write_text(text, "utf-8", "replace"), flush=False)


def _known(cls: Any, values: Mapping[str, Any]) -> Any:
    """Of the fields that the class has; a later version may have added others."""
    return cls(**{one.name: values[one.name] for one in fields(cls) if one.name in values})
