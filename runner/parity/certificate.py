"""Which requests of a job are made again, and what of them is equal to what the job made."""

import gc
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from runner.components.directory import Directory
from runner.config import JobConfig, RunConfig
from runner.media.save import Writing, save, to_write
from runner.output.folder import Folder
from runner.output.lines import ManifestLine, OutputFile
from runner.parity.plain import Plain, open_plain
from runner.request import Request
from weights.blocks import spread


@dataclass(frozen=True)
class Compared:
    """A file of a request, made twice. `apart`: root mean square of the difference over that of the values, where both
    files hold them as they were."""

    file: str
    equal: bool
    apart: float | None = None


@dataclass(frozen=True)
class Verified:
    """A request that was made again, and `how`."""

    id: str
    prompt: Any
    seed: int
    how: str
    files: Sequence[Compared]

    @property
    def equal(self) -> bool:
        return all(file.equal for file in self.files)


@dataclass(frozen=True)
class Certificate:
    """`may_differ`: the settings of the recipe that allow other bits than the stock pipeline's."""

    requests: Sequence[Verified]
    may_differ: Sequence[str]

    @property
    def holds(self) -> bool:
        return bool(self.may_differ) or all(one.equal for one in self.requests)

    def to_json(self) -> dict[str, Any]:
        told = [{**asdict(one), "equal": one.equal} for one in self.requests]
        return {"holds": self.holds, "may_differ": list(self.may_differ), "requests": told}

    def __str__(self) -> str:
        equal = sum(one.equal for one in self.requests)
        hows = ", ".join(dict.fromkeys(one.how for one in self.requests))
        lines = [f"verified: {equal} of {len(self.requests)} requests have the same bits again ({hows})"]
        for one in self.requests:
            for file in one.files:
                if not file.equal:
                    apart = "" if file.apart is None else f", {file.apart:.1e} apart (rms, relative)"
                    allowed = f", as {', '.join(self.may_differ)} may" if self.may_differ else ""
                    lines.append(f"differs{allowed}: {file.file}{apart}; what it was held against is in verify/")
        return "\n".join(lines)


def certify(
    made: Sequence[tuple[Request, ManifestLine]],
    number: int,
    config: RunConfig,
    directory: Directory,
    device: torch.device,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Certificate:
    """Make `number` of the requests again, evenly spread over those that were made, or all if there are fewer. What
    comes out differently stays in <output>/verify. Call it when the job's own pipeline is gone."""
    chosen = spread(made, min(number, len(made)))
    files, again = Folder(Path(config.job.output)), Folder(Path(config.job.output) / "verify")
    shutil.rmtree(again.path, ignore_errors=True)
    again.images.mkdir(parents=True)
    verified = []
    for plain, pairs in _opened(chosen, config, directory, device):
        for request, line in pairs:
            if is_stopping():
                break
            told = _made_again(plain, request, config.job, again)
            compared = [_compared(file, told.get(file.file), files.path, again.path) for file in line.all_files]
            verified.append(Verified(request.id, request.prompt, request.seed, plain.how, compared))
    if all(one.equal for one in verified):
        shutil.rmtree(again.path)
    return Certificate(verified, _may_differ(config))


def _opened(
    chosen: Sequence[tuple[Request, ManifestLine]], config: RunConfig, directory: Directory, device: torch.device
) -> Iterator[tuple[Plain, list[tuple[Request, ManifestLine]]]]:
    """One pipeline for the requests of each set of adapters: merged ones are not taken out of stock weights again."""
    by_adapters = sorted(chosen, key=lambda pair: repr(dict(pair[0].lora)))
    for _, pairs in groupby(by_adapters, key=lambda pair: repr(dict(pair[0].lora))):
        together = list(pairs)
        plain = open_plain(config, directory, device, together[0][0].lora)
        yield plain, together
        del plain
        gc.collect()


def _made_again(plain: Plain, request: Request, job: JobConfig, folder: Folder) -> dict[str, OutputFile]:
    """By the name that the file has in the job's folder too."""
    writing = Writing(replace(job, report=False), plain.stock)
    saved = save(to_write(plain.make(request), writing), request, folder, writing)
    return {file.file: file for file in saved["files"]}


def _compared(file: OutputFile, other: OutputFile | None, here: Path, there: Path) -> Compared:
    if other is None:
        return Compared(file.file, equal=False)
    if (file.sha256, file.sound_sha256) == (other.sha256, other.sound_sha256):
        (there / file.file).unlink()
        return Compared(file.file, equal=True)
    return Compared(file.file, equal=False, apart=_apart(here / file.file, there / file.file))


def _apart(one: Path, other: Path) -> float | None:
    a, b = _values(one), _values(other)
    if a is None or b is None or a.shape != b.shape:
        return None
    return float(np.sqrt(np.mean((a - b) ** 2)) / max(np.sqrt(np.mean(b**2)), 1e-30))


def _values(file: Path) -> np.ndarray | None:
    """What was hashed, where the file holds it as it was."""
    if file.suffix == ".npy":
        return np.load(file, allow_pickle=False).astype(np.float64)
    return np.asarray(Image.open(file), dtype=np.float64) if file.suffix == ".png" else None


def _may_differ(config: RunConfig) -> list[str]:
    """The settings that a request's bits depend on, and that the stock pipeline does not have."""
    settings = {"execution.compile": config.execution.compile, "mesh.context": config.mesh.context != 1}
    return [name for name, value in settings.items() if value]
