"""What an output folder tells of its job, from its files alone: on any node, at any time, of a dead job too."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from runner.output.folder import Folder
from runner.output.journal import Journal
from runner.output.lines import Failure, ManifestLine
from runner.output.rank_results import RankResults, Results
from runner.output.write import read_json
from runner.report.live.life import Life, life_of
from runner.report.live.status import JobStatus

T = TypeVar("T", ManifestLine, Failure)


@dataclass(frozen=True)
class Attempts:
    """How often each request was begun, over all runs of the folder, and where those went on that had a log."""

    starts: Mapping[str, int] = field(default_factory=dict)
    went_on: Sequence[tuple[str, int]] = ()  # a request, and the calls that its log had
    withdrawn: int = 0  # tries that ended for reasons that were not the request's

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]]) -> "Attempts":
        starts, went_on, withdrawn = Counter[str](), list[tuple[str, int]](), 0
        for line in lines:
            starts.update(_texts(line.get("started")))
            calls = line.get("calls")
            went_on += [(str(id), int(n)) for id, n in calls.items()] if isinstance(calls, dict) else []
            withdrawn += len(_texts(line.get("withdrawn")))
        return cls(starts, went_on, withdrawn)


@dataclass(frozen=True)
class Told:
    """The state of a folder. A file that is missing or damaged tells nothing; the others still do."""

    folder: Folder
    run: Mapping[str, Any]  # run.json, of the last run
    made: Sequence[ManifestLine]
    failures: Sequence[Failure]  # every try that failed, in their order
    attempts: Attempts
    runs: Sequence[Mapping[str, Any]]  # a line when a run began, and one when it ended
    samples: Sequence[Mapping[str, Any]]  # of all runs
    status: JobStatus | None  # the last one of the last run
    is_seen: bool = False  # writing, a moment ago

    @classmethod
    def by(cls, folder: Folder) -> "Told":
        found = Results(
            _lines(ManifestLine, Journal(folder.manifest).lines()[0]),
            _lines(Failure, Journal(folder.failures).lines()[0]),
        )
        for file in folder.results_of_ranks():  # what rank 0 has not taken over yet
            found.add(RankResults(file).news())
        return cls(
            folder,
            read_json(folder.run_json),
            list({line.id: line for line in found.made}.values()),
            list({(line.id, line.attempts, line.time): line for line in found.failed}.values()),
            Attempts.of(Journal(folder.attempts).lines()[0]),
            Journal(folder.runs).lines()[0],
            Journal(folder.samples).lines()[0],
            JobStatus.read(folder),
        )

    @property
    def state(self) -> str:
        """As run.json has it; of a run that should be running, `dead` or `silent` where it does not seem to be;
        `unknown` where no run has got so far."""
        state = str(self.run.get("state", "unknown"))
        is_open = state == Life.running.value and not self.is_seen
        return life_of(self.run, self.status, self.folder).value if is_open else state

    def seen_alive(self) -> "Told":
        """By whoever has looked twice, whatever the clocks say."""
        return replace(self, is_seen=True)

    @property
    def begun_again(self) -> int:
        """How many times a request was begun that had been begun before, and had not failed by itself."""
        failed = Counter(failure.id for failure in self.failures)
        return sum(max(0, starts - 1 - failed[id]) for id, starts in self.attempts.starts.items())


def _lines(cls: type[T], objects: Sequence[Mapping[str, Any]]) -> list[T]:
    return [line for line in map(cls.from_json, objects) if line is not None]


def _texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
