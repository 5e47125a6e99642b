"""The results of a job as the page has them: small, since there may be ten thousand."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from runner.output.folder import Folder
from runner.output.lines import ManifestLine, OutputFile
from runner.report.page.distinct import Distinct


def results(folder: Folder, made: Sequence[ManifestLine]) -> dict[str, Any]:
    """The finished requests, in the order of the job."""
    calls, devices = Distinct(), Distinct()
    thumbnails = {file.name for file in folder.thumbnails.glob("*.jpg")}
    return {
        "rows": [_row(folder, line, calls, devices, thumbnails) for line in sorted(made, key=_place)],
        "calls": calls.values,
        "devices": devices.values,
    }


def _row(
    folder: Folder, line: ManifestLine, calls: Distinct, devices: Distinct, thumbnails: set[str]
) -> dict[str, Any]:
    row = {
        "id": line.id,
        "prompt": line.prompt,
        "seed": line.seed,
        "call": calls.place(dict(line.call)),
        "device": devices.place(dict(line.made_on)),
        "rank": line.rank,
        "seconds": line.seconds,
        "at": round(line.mtime_ns / 1e9, 3),  # of the file: when it was finished
        "files": [_file(file) for file in line.all_files],
    }
    more: Mapping[str, Any] = {"lora": line.lora, "values": line.values, "left_out": line.left_out}
    row |= {name: value for name, value in more.items() if value}
    return row | ({"thumb": thumb} if (thumb := folder.thumbnail(_stem(line)).name) in thumbnails else {})


def _stem(line: ManifestLine) -> str:
    """A request's own name: that of its files up to the first dot."""
    return line.file.rpartition("/")[2].partition(".")[0]


def _place(line: ManifestLine) -> tuple[int, str]:
    """In the job: file names begin with the request's number, in four digits or more."""
    number = re.match(r"[0-9]{1,18}", _stem(line))
    return int(number[0]) if number else 0, line.file


def _file(file: OutputFile) -> dict[str, Any]:
    told = file.to_json()
    kept = ("file", "bytes", "field", "kind", "shape", "fps", "sampling_rate", "sound_field", "note", "sha256")
    return {name: told[name] for name in kept if name in told}
