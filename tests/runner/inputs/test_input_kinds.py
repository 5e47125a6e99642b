"""Every kind of argument, from every place that it can be written in: right, missing, damaged."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import UserError
from runner.inputs.decode import decoded
from runner.job.prompts import Prompt
from tests.runner.inputs.input_files import KINDS, Kind, draw, is_same, read

SOURCES = ("command line", "yaml", "jsonl", "csv")
CPU = torch.device("cpu")
# How many bytes are left of each.
DAMAGED = {"a.jpg": 300, "clip.mp4": 200, "a.wav": 20, "a.flac": 20, "a.mp3": 2, "c.npy": 150, "e.safetensors": 30}


def asked(kind: Kind, source: str, folder: Path) -> list[Prompt]:
    """What a job asks for whose argument is written in `source`, in `folder`."""
    texts = {"task_prompt": "a task"} if "VisualCloze" in kind.pipeline else {"prompt": "a fox"}
    row = {**texts, **dict.fromkeys(kind.required, "other.png"), kind.argument: kind.value(kind.file)}
    call = {name: value for name, value in row.items() if name != "prompt"}
    prompt = {"prompt": row["prompt"]} if "prompt" in row else {}
    file = folder / f"job.{source}"
    if source == "command line":
        words = [f"job.call.{name}={_typed(value)}" for name, value in call.items()]
        return read(kind, *words, *(f"job.prompt={text}" for text in prompt.values()))
    if source == "yaml":
        file.write_text(json.dumps({"job": {**prompt, "call": call}}))
        return read(kind, file=file)
    if source == "jsonl":
        file.write_text(json.dumps(row))
    else:
        _write_table(file, {name: _typed(value) for name, value in row.items()})
    return read(kind, f"job.prompts={file}")


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _write_table(file: Path, cells: Mapping[str, str]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(cells))
        writer.writeheader()
        writer.writerow(cells)


@pytest.fixture(params=[(name, source) for name in KINDS for source in SOURCES], ids=" in ".join)
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Kind, str, Path]:
    """A kind, a source, and the folder that both the source and its files are in."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "other.png")
    return KINDS[request.param[0]], request.param[1], tmp_path


def test_a_right_file_is_what_stock_gets(case: tuple[Kind, str, Path]) -> None:
    kind, source, folder = case
    path = kind.write(folder / kind.file)
    (prompt,) = asked(kind, source, folder)
    with torch.inference_mode():
        got = decoded(prompt.call, CPU)
    assert is_same(got[kind.argument], kind.oracle(path))


def test_a_missing_file_is_named_with_its_place(case: tuple[Kind, str, Path]) -> None:
    kind, source, folder = case
    with pytest.raises(UserError) as refused:
        asked(kind, source, folder)
    _names_its_place(str(refused.value), kind, source)
    assert f"{kind.file}: no such file (relative to {folder}); check the path" in str(refused.value)


def test_a_damaged_file_is_named_with_its_place(case: tuple[Kind, str, Path]) -> None:
    kind, source, folder = case
    path = kind.write(folder / kind.file)
    path.write_bytes(path.read_bytes()[: DAMAGED.get(kind.file, 60)])
    with pytest.raises(UserError, match=rf"{kind.file} (is damaged|begins with)") as refused:
        asked(kind, source, folder)
    _names_its_place(str(refused.value), kind, source)


def _names_its_place(message: str, kind: Kind, source: str) -> None:
    line = {"jsonl": ":1", "csv": ":2"}.get(source)
    place = f"job.call.{kind.argument}" if line is None else f"job.{source}{line}: {kind.argument}"
    assert place in message and "Traceback" not in message
