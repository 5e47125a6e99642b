"""run.json: what the last run of a folder is doing, or how it ended."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.output.folder import Folder
from runner.output.journal import Journal
from runner.output.lock import Holder, holder_of
from runner.output.write import read_json, write_json, write_whole


class RunFile:
    """The folder's run.json, as one run writes it; and its `state`, a word, in a file of a batch script's choice."""

    def __init__(self, folder: Folder, holder: Holder, state_file: Path | None) -> None:
        self.folder = folder
        self.holder = holder
        self.state_file = state_file
        self.facts: Mapping[str, Any] = {}  # of the run, once they are known: they stand in it however the run ends

    def write(self, news: Mapping[str, Any]) -> None:
        """Also on a full disk: there the old file makes room for the new one."""
        report, path = {**self.holder.to_json(), **self.facts, **news}, self.folder.run_json
        try:
            write_json(path, report)
        except OSError:
            path.unlink(missing_ok=True)
            write_json(path, report)
        self._note_run(report)
        if self.state_file is not None:
            state = str(news["state"])
            write_whole(self.state_file, lambda temp: temp.write_text(state + "\n"))

    def _note_run(self, report: Mapping[str, Any]) -> None:
        """A line of runs.jsonl at a run's beginning, and one at its end: run.json tells of the last run only."""
        kept = ("run", "host", "slurm_job", "state", "world_size", "device", "stopped", "fault", "finished", "left")
        line = {name: report[name] for name in kept if report.get(name) is not None}
        with suppress(OSError):  # on a full disk run.json has said what matters
            Journal(self.folder.runs).append([{**line, "time": round(time.time(), 3)}])

    def is_ours(self) -> bool:
        """False once another job has taken the folder over."""
        holder = holder_of(self.folder)
        return holder is not None and holder.run == self.holder.run

    def tells_of_fault(self) -> bool:
        told = read_json(self.folder.run_json)
        return told.get("run") == self.holder.run and told.get("state") == "fault"

    def claim(self) -> Path:
        """A file that only the first rank to speak can create. Raises FileExistsError for the others."""
        path = self.folder.fault_claim(self.holder.run)
        if not self.tells_of_fault():
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            if not self.tells_of_fault():
                return path
            path.unlink()  # the first has spoken since we looked, and removed its own
        raise FileExistsError(path)
