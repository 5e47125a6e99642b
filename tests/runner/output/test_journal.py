"""Files of JSON lines, whatever ended the process that wrote them."""

from pathlib import Path

import pytest

from runner.output.journal import Journal


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    assert journal.lines() == ([], 0)
    journal.append([{"id": "a", "prompt": "caf\u00e9 \U0001f600"}])
    journal.append([])
    journal.append([{"id": "b"}, {"id": "c"}])
    assert [line["id"] for line in journal.lines()[0]] == ["a", "b", "c"]
    assert journal.lines()[0][0]["prompt"] == "caf\u00e9 \U0001f600"


@pytest.mark.parametrize(
    ("damage", "count"),
    [(b'{"id": "to', 1), (b'{"id": "whole but without an end"}', 1), (b"[1]\n", 1), (b"\xff\xfe\n\0\0\0\n", 2)],
)
def test_damaged_lines_are_counted_and_left_out(tmp_path: Path, damage: bytes, count: int) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append([{"id": "a"}])
    with journal.path.open("ab") as stream:
        stream.write(damage)
    lines, damaged = journal.lines()
    assert lines == [{"id": "a"}] and damaged == count
    journal.rewrite(lines)
    assert journal.lines() == ([{"id": "a"}], 0)
    assert list(tmp_path.iterdir()) == [journal.path]
