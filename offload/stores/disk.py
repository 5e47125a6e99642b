"""Weights that rest on disk, in the component's own safetensors files: no second copy of them is made.

[Note: how the files are read]
Through the page cache, in runs of up to RUN_BYTES straight into place, and dropped from it after each run, unless the
file was in the page cache when it was opened. O_DIRECT would need less CPU time but an aligned buffer to copy from, and
the kernel reads no run ahead for it. Medians of 9 turns on a virtual disk (ext4, Linux 6.18, 2 cores that had other
work too), `python scripts/bench_disk_reads.py --repeats 9`, GB/s and CPU seconds per GB:

                              cold, 1 thread   cold, 2 threads   warm, 1 thread   warm, 2 threads
    this store                 1.53   0.38       1.12   0.42       2.30   0.32       2.54   0.24
    page cache, not dropped    0.83   0.77       1.37   0.37       2.04   0.32       2.60   0.24
    O_DIRECT, 1 MiB buffers    0.81   0.22       1.09   0.22       0.85   0.22       0.92   0.22

Keeping the pages costs more than dropping them where the kernel must find new ones for every run. Of a cold 1 GiB file,
a pass left 9 % in the page cache (what the kernel had read ahead, and nobody wanted yet); closing drops that too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import torch

from offload.stores.packing import PackedTensor, Packing, pack, view
from weights.checkpoint import Checkpoint, CheckpointError, StoredTensor, match_keys, refuse_unfit
from weights.files import why_unreadable
from weights.weight_file import WeightFile

RUN_BYTES = 32 * 2**20  # at most so much is read, or converted, in one go
_RUN_PIECES = 512  # of the 1024 buffers that one preadv may fill


@dataclass(frozen=True)
class _Piece:
    """A stretch of a stored tensor, at byte `offset` in its file, and the byte `target` of its unit where it goes."""

    key: str
    offset: int
    num_bytes: int
    target: int


@dataclass(frozen=True)
class _Run:
    """Pieces that lie side by side in a file, and go as they are to where they belong: one system call."""

    unit: str
    file: WeightFile
    pieces: list[_Piece]

    @property
    def offset(self) -> int:
        return self.pieces[0].offset

    @property
    def num_bytes(self) -> int:
        return sum(piece.num_bytes for piece in self.pieces)

    @property
    def key(self) -> str:
        return self.pieces[0].key

    def fill(self, unit: torch.Tensor) -> None:
        data = unit.numpy().data
        self.file.read_into(self.offset, [(p.key, data[p.target : p.target + p.num_bytes]) for p in self.pieces])


@dataclass(frozen=True)
class _Conversion:
    """A tensor whose dtype or strides in the unit are not those in the file: read into a scratch buffer by rows."""

    unit: str
    file: WeightFile
    stored: StoredTensor
    packed: PackedTensor

    @property
    def offset(self) -> int:
        return self.stored.offset

    @property
    def num_bytes(self) -> int:
        return self.stored.num_bytes

    @property
    def key(self) -> str:
        return self.stored.key

    def fill(self, unit: torch.Tensor) -> None:
        target = torch.atleast_1d(view(self.packed, unit))
        row_bytes = self.num_bytes // len(target)
        rows = min(max(RUN_BYTES // row_bytes, 1), len(target))
        scratch = torch.empty(rows * row_bytes, dtype=torch.uint8)
        for i in range(0, len(target), rows):
            part = target[i : i + rows]
            raw = scratch[: len(part) * row_bytes]
            self.file.read_into(self.offset + i * row_bytes, [(self.key, raw.numpy().data)])
            part.copy_(raw.view(self.stored.dtype).view(part.shape))


class DiskStore:
    """A `Store` whose units are read from the safetensors files whenever they are wanted.

    `units`: by unit name, by the module's name for each tensor, a tensor (meta will do) of the shape, dtype and
    strides that are wanted. All of the module's parameters and persistent buffers must be there, a tied one once,
    and its other names in `aliases`.

    Raises, before any weight is read: KeysDiffer where the files lack some of these (then let the library load the
    module, and use `HostStore.from_tensors`), CheckpointError for files or shapes that are wrong.
    """

    rest: Literal["host", "disk"] = "disk"
    packings: Mapping[str, Packing]

    def __init__(
        self,
        checkpoint: Checkpoint,
        units: Mapping[str, Mapping[str, torch.Tensor]],
        *,
        aliases: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.packings = {unit: pack(tensors) for unit, tensors in units.items()}
        names = [name for tensors in units.values() for name in tensors]
        assert len(set(names)) == len(names), "a tensor is in two units"
        before = checkpoint.identities()
        tied = [(name, *(aliases or {}).get(name, ())) for name in names]
        stored = dict(zip(names, match_keys(checkpoint, tied), strict=True))
        refuse_unfit((stored[name], tensor) for t in units.values() for name, tensor in t.items())
        self._files: dict[Path, WeightFile] = {}
        try:
            for path in sorted({tensor.file for tensor in stored.values()}):
                self._files[path] = WeightFile(path, before.get(path))
        except OSError as error:
            self.close()
            raise CheckpointError(why_unreadable(Path(error.filename), error)) from error
        self._steps = {
            unit: list(_steps(unit, packing, stored, self._files)) for unit, packing in self.packings.items()
        }

    def view(self, unit: str) -> None:
        """None: what is on disk must be read."""
        return None

    def read(self, unit: str, out: torch.Tensor) -> None:
        """Fill `out`, uint8 (num_bytes,) in host memory; the bytes between the tensors stay as they are.

        Any number of threads may read at once. The GIL is released meanwhile. Raises StoreError, naming file and
        tensor, where the file cannot be read, or is no longer the one whose header was read.
        """
        assert out.dtype == torch.uint8 and out.numel() == self.packings[unit].num_bytes
        _fill(self._steps[unit], lambda _: out)

    def read_share(self, unit_bytes: Callable[[str], torch.Tensor], share: int, num_shares: int) -> None:
        """Fill one of `num_shares` parts, alike in bytes, of all units: `unit_bytes(unit)` as `out` of `read`.

        Each part lies together in the files. `num_shares` calls, in whatever processes, fill every unit.
        """
        steps = sorted(chain(*self._steps.values()), key=lambda step: (step.file.path, step.offset))
        total, before, mine = sum(step.num_bytes for step in steps), 0, []
        for step in steps:
            if (before + step.num_bytes // 2) * num_shares // total == share:
                mine.append(step)
            before += step.num_bytes
        _fill(mine, unit_bytes)

    def close(self) -> None:
        """Idempotent. No read may be running."""
        for file in self._files.values():
            file.close()


def _fill(steps: Iterable[_Run | _Conversion], unit_bytes: Callable[[str], torch.Tensor]) -> None:
    read_from: dict[WeightFile, str] = {}
    for step in steps:
        step.fill(unit_bytes(step.unit))
        read_from[step.file] = step.key
    for file, key in read_from.items():
        file.refuse_change(key)


def _steps(
    unit: str, packing: Packing, stored: Mapping[str, StoredTensor], files: Mapping[Path, WeightFile]
) -> list[_Run | _Conversion]:
    """How to read a unit."""
    runs: list[_Run] = []
    conversions = []
    for name, packed in sorted(
        packing.tensors.items(), key=lambda item: (stored[item[0]].file, stored[item[0]].offset)
    ):
        source, file = stored[name], files[stored[name].file]
        if source.num_bytes and not _is_as_stored(packed, source):
            conversions.append(_Conversion(unit, file, source, packed))
            continue
        for piece in _pieces(source, packed):
            if not runs or not _continues(runs[-1], file, piece):
                runs.append(_Run(unit, file, []))
            runs[-1].pieces.append(piece)
    return [*runs, *conversions]


def _is_as_stored(packed: PackedTensor, stored: StoredTensor) -> bool:
    in_rows = torch.empty_strided(packed.shape, packed.stride, device="meta").is_contiguous()
    return in_rows and packed.dtype == stored.dtype


def _pieces(stored: StoredTensor, packed: PackedTensor) -> Iterator[_Piece]:
    for start in range(0, stored.num_bytes, RUN_BYTES):
        num_bytes = min(RUN_BYTES, stored.num_bytes - start)
        yield _Piece(stored.key, stored.offset + start, num_bytes, packed.offset + start)


def _continues(run: _Run, file: WeightFile, piece: _Piece) -> bool:
    fits = len(run.pieces) < _RUN_PIECES and run.num_bytes + piece.num_bytes <= RUN_BYTES
    return fits and run.file is file and run.offset + run.num_bytes == piece.offset
