"""What a job's exit code does not say."""

from pathlib import Path

from runner.output.folder import Folder
from runner.output.journal import Journal
from runner.output.lines import Failure


def why(output: Path) -> str:
    """What failed in an output folder, with tracebacks: the message of an assertion about an exit code."""
    lines = [Failure.from_json(line) for line in Journal(Folder(output).failures).lines()[0]]
    return "\n".join(f"{one.prompt!r}: {one.reason}\n{one.traceback}" for one in lines if one) or "no request failed"
