"""Who speaks of a fault where rank 0 is lost: one rank, and each takes back what itself had begun."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runner.health.fault import Fault, Status
from runner.health.last_line import LastLine
from runner.output.folder import Folder
from runner.output.lock import Holder
from runner.output.run_file import RunFile
from runner.progress import Progress
from runner.request import Request

FAULT = Fault.at(Status(rank=0), "its process ended without a word", by_request=True)


def withdrawn(folder: Folder) -> list[str]:
    lines = map(json.loads, folder.attempts.read_text().splitlines())
    return [id for line in lines for id in line["withdrawn"]]


def test_the_second_may_look_before_the_first_has_spoken_and_claim_after_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, holder = Folder(tmp_path), Holder.this_run()
    folder.lock.write_text(json.dumps(holder.to_json()))
    requests = [Request("a fox", 1, {}), Request("a fox", 2, {})]
    first, second = (LastLine(Progress(begun=[one]), RunFile(folder, holder, None)) for one in requests)
    create = os.open

    def after_the_first(path: Any, *how: Any, **named: Any) -> int:
        monkeypatch.undo()
        first.fault(FAULT, as_rank_0=False)
        return create(path, *how, **named)

    monkeypatch.setattr(os, "open", after_the_first)
    second.fault(FAULT, as_rank_0=False)
    assert capfd.readouterr().err.count("fault: ") == 1
    assert withdrawn(folder) == [one.id for one in requests]
    assert not folder.fault_claim(holder.run).exists()
