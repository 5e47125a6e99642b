"""What an output folder tells of its job, from its files alone: on any node, at any time, of a dead job too."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.output.folder import Folder
from runner.output.journal import Journal
from runner.output.lines import Failure, ManifestLine
from runner.output.write import read_json


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

    @classmethod
    def by(cls, folder: Folder) -> "Told":
        made = (ManifestLine.from_json(line) for line in Journal(folder.manifest).lines()[0])
        failures = (Failure.from_json(line) for line in Journal(folder.failures).lines()[0])
        return cls(
            folder,
            read_json(folder.run_json),
            list({line.id: line for line in made if line is not None}.values()),
            [line for line in failures if line is not None],
            Attempts.of(Journal(folder.attempts).lines()[0]),
        )

    @property
    def state(self) -> str:
        """As run.json has it; `unknown` where no run has got so far."""
        return str(self.run.get("state", "unknown"))

    @property
    def begun_again(self) -> int:
        """How many times a request was begun that had been begun before, and had not failed by itself."""
        failed = Counter(failure.id for failure in self.failures)
        return sum(max(0, starts - 1 - failed[id]) for id, starts in self.attempts.starts.items())


def _texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
