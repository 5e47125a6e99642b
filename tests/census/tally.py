"""What became of the cases, told as a table with a line for each."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec


@dataclass
class Tally:
    """The cases that were tried, those that lack a package here, and the others' results: what went wrong by arm."""

    tried: set[str] = field(default_factory=set)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    results: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def environment(self) -> str:
        return "with torchvision" if find_spec("torchvision") else "without torchvision"

    @property
    def passed(self) -> list[str]:
        return [name for name, wrong in self.results.items() if not any(wrong.values())]

    def lines(self) -> Iterator[str]:
        """The table, and the count."""
        for name in sorted(self.tried):
            if name in self.skipped:
                yield f"{name:<48} not here: needs {', '.join(self.skipped[name])}"
            elif name in self.results:
                arms = "  ".join(f"{arm} {'no' if wrong else 'ok'}" for arm, wrong in self.results[name].items())
                yield f"{name:<48} {arms}  {sum(self.seconds[name].values()):5.1f} s"
                for error in dict.fromkeys(filter(None, self.results[name].values())):
                    yield f"    {error.splitlines()[0][:200]}"
            else:
                yield f"{name:<48} died"
        passed, tried = len(self.passed), len(self.tried)
        yield f"{passed} of {tried} pipelines give the stock bits in every placement, {self.environment}"
