"""What is written of an interval, and read again."""

import json
import re
from pathlib import Path

from runner.output.folder import Folder
from runner.output.journal import Journal
from runner.trace.interval import Head, Interval, Lane

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "trace.md"
FULL = Interval(
    name="prefetch", lane=Lane.prefetch, begin=1.25, end=1.5, stage="denoise", component="transformer",
    block="blocks.0", request="abc", step=0, num_bytes=4096,
)  # fmt: skip
SHORT = Interval(name="meet", lane=Lane.wait, begin=2.0, end=2.000001)


def test_intervals_come_back_from_a_file_that_was_cut_short(tmp_path: Path) -> None:
    file = Folder(tmp_path).intervals(1)
    file.parent.mkdir()
    head = Head(rank=1, world_size=2, device="cpu", began=1764341234.5, clock_error=0.25)
    Journal(file).append([head.to_json(), FULL.to_json(), SHORT.to_json()])
    with file.open("ab") as end:
        end.write(b'{"name": "block", "lane": "comp')
    lines, damaged = Journal(file).lines()
    assert damaged == 1
    assert Head.from_json(lines[0]) == head
    assert [Interval.from_json(line) for line in lines] == [None, FULL, SHORT]


def test_what_says_nothing_is_left_out_and_the_first_step_is_kept() -> None:
    assert SHORT.to_json() == {"name": "meet", "lane": "wait", "begin": 2.0, "end": 2.000001}
    assert FULL.to_json()["step"] == 0


def test_a_line_of_something_else_is_no_interval() -> None:
    for line in ({}, {"lane": "compute"}, {**FULL.to_json(), "lane": "elsewhere"}):
        assert Interval.from_json(line) is None
    assert Head.from_json({"rank": 0, "world_size": 1, "device": "cpu", "began": 1.0, "format": 2}) is None


def test_the_document_shows_lines_that_are_read() -> None:
    shown = re.search(r"```text\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert shown is not None
    head, *lines = [json.loads(line) for line in shown[1].splitlines()]
    assert Head.from_json(head) is not None
    for line in lines:
        interval = Interval.from_json(line)
        assert interval is not None and interval.to_json() == line
