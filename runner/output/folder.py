"""Every file in an output folder, by name."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from runner.errors import UserError
from runner.output.write import is_temporary
from runner.request import Part


@dataclass(frozen=True)
class Folder:
    """The names in one output folder; nothing is read or written here."""

    path: Path

    @property
    def images(self) -> Path:
        return self.path / "images"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.jsonl"

    @property
    def failures(self) -> Path:
        return self.path / "failures.jsonl"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts.jsonl"

    def results_of(self, rank: int | str) -> Path:
        """What a rank other than rank 0 has finished in this run."""
        return self.path / f"results-of-rank-{rank}.jsonl"

    def results_of_ranks(self) -> list[Path]:
        """Those that are there."""
        return sorted(self.path.glob(self.results_of("*").name))

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.json"

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def runs(self) -> Path:
        return self.path / "runs.jsonl"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def lock(self) -> Path:
        return self.path / "job.lock"

    @property
    def stop(self) -> Path:
        return self.path / "stop"

    @property
    def contact_sheet(self) -> Path:
        return self.path / "contact-sheet.png"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def thumbnails(self) -> Path:
        return self.path / "thumbnails"

    def thumbnail(self, stem: str) -> Path:
        """Of what the request of this name made, for the report."""
        return self.thumbnails / f"{stem}.jpg"

    @property
    def calls(self) -> Path:
        return self.path / "calls"

    def call_log(self, id: str) -> Path:
        """What a request's denoiser gave so far, while it is not finished."""
        return self.calls / f"{id}.log"

    def refuse_links(self) -> None:
        """Raise UserError for a link in a file's place: we would write to, or empty, what it points at."""
        journals = (self.manifest, self.failures, self.attempts, self.runs, self.samples)
        for file in (self.lock, self.recipe, self.run_json, *journals):
            if file.is_symlink():
                raise UserError(f"{file} is a link to {file.readlink()}: remove it, or name another job.output")
            if file.is_dir():
                raise UserError(f"{file} is a folder: remove it, or name another job.output")

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    def trace(self, rank: int) -> Path:
        return self.profile / f"rank{rank}.json"

    @property
    def merged_trace(self) -> Path:
        return self.profile / "all-ranks.json"

    def intervals(self, rank: int) -> Path:
        return self.profile / f"rank{rank}.intervals.jsonl"

    def fault_claim(self, run: str) -> Path:
        """Created by the first rank to speak of a fault. Temporary: should that rank not come to remove it, the next
        run does."""
        return self.path / f".fault-{run}.tmp"

    def turn_of(self, rank: int | str) -> Path:
        """Whose turn it is in the group that the rank makes. Temporary: the next run reads it, and removes it."""
        return self.path / f".turn-of-rank-{rank}.tmp"

    def turns(self) -> list[Path]:
        """Those that ranks left that were killed."""
        return sorted(self.path.glob(self.turn_of("*").name))

    def temporary(self) -> list[Path]:
        """What a dead run left half written."""
        inside = (file for place in (self.path, self.images) for file in place.glob(".*"))
        return [file for file in inside if is_temporary(file)]


def folders_for(output: Path, part: Part) -> Iterator[Folder]:
    """Where a part's results go: under `output`, or under output-2, output-3, ... for whom `output` does not fit.

    Raises UserError when `output` was split otherwise: each split would make the requests of the other once more.
    """
    others = {folder.name.rpartition("-of-")[2] for folder in output.glob("part-*-of-*")} - {str(part.size)}
    if Folder(output).manifest.exists() and part.size > 1:
        others.add("1")
    if others:
        raise UserError(
            f"job.part: {output} holds a job in {' or '.join(sorted(others))} part(s), not {part.size}; "
            "go on with as many, or name another job.output"
        )
    yield Folder(output / part.name)
    for number in count(2):
        yield Folder(output.with_name(f"{output.name}-{number}") / part.name)
