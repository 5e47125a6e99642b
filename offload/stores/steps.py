"""How the bytes of a unit come out of the files: which stretches of a file go where, in how many reads."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from offload.stores.packing import PackedTensor, Packing, view
from weights.checkpoint import StoredTensor
from weights.weight_file import WeightFile

RUN_BYTES = 32 * 2**20  # at most so much is read, or converted, in one go
_RUN_PIECES = 512  # of the 1024 buffers that one preadv may fill


@dataclass(frozen=True)
class Stretch:
    """Bytes of a unit, from `start` on."""

    unit: str
    start: int
    end: int

    def part(self, packed: PackedTensor) -> tuple[int, int]:
        """Of the tensor's own bytes, the first one in here and the one after the last; the same where there is none."""
        first = min(max(self.start - packed.offset, 0), packed.num_bytes)
        return first, max(min(self.end - packed.offset, packed.num_bytes), first)


@dataclass(frozen=True)
class Piece:
    """Bytes of a stored tensor, at byte `offset` in its file, and the byte `target` of the stretch where they go."""

    key: str
    offset: int
    num_bytes: int
    target: int


@dataclass(frozen=True)
class Run:
    """Pieces that lie side by side in a file, and go as they are to where they belong: one system call."""

    unit: str
    file: WeightFile
    pieces: list[Piece]

    @property
    def offset(self) -> int:
        return self.pieces[0].offset

    @property
    def num_bytes(self) -> int:
        return sum(piece.num_bytes for piece in self.pieces)

    @property
    def key(self) -> str:
        return self.pieces[0].key

    def fill(self, out: torch.Tensor) -> None:
        data = out.numpy().data
        self.file.read_into(self.offset, [(p.key, data[p.target : p.target + p.num_bytes]) for p in self.pieces])


@dataclass(frozen=True)
class Conversion:
    """A tensor, or part of one, whose dtype or strides in the unit are not those in the file: read into a scratch
    buffer, some rows or elements at a time. `first` and `end` are the bytes of it that go to byte `target` on.

    Where the strides differ, the rows of the file lie scattered in the unit. Then all of the tensor is read for each
    part that is asked for; no model of the libraries declares its large weights so.
    """

    unit: str
    file: WeightFile
    stored: StoredTensor
    packed: PackedTensor
    first: int
    end: int
    target: int

    @property
    def offset(self) -> int:
        return self.stored.offset + self._elements.start * self.stored.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return len(self._elements) * self.stored.dtype.itemsize

    @property
    def key(self) -> str:
        return self.stored.key

    @property
    def _elements(self) -> range:
        """Of the file's order, what is read."""
        if not _is_in_rows(self.packed):
            return range(math.prod(self.packed.shape))
        return range(self.first // self.packed.dtype.itemsize, self.end // self.packed.dtype.itemsize)

    def fill(self, out: torch.Tensor) -> None:
        into = out[self.target : self.target + self.end - self.first]
        if _is_in_rows(self.packed):
            self._read_rows(into.view(self.packed.dtype))
        elif len(into) == self.packed.num_bytes:
            self._read_rows(torch.atleast_1d(view(replace(self.packed, offset=0), into)))
        else:
            whole = torch.empty(self.packed.num_bytes, dtype=torch.uint8)
            self._read_rows(torch.atleast_1d(view(replace(self.packed, offset=0), whole)))
            into.copy_(whole[self.first : self.end])

    def _read_rows(self, target: torch.Tensor) -> None:
        row_bytes = self.num_bytes // len(target)
        rows = min(max(RUN_BYTES // row_bytes, 1), len(target))
        scratch = torch.empty(rows * row_bytes, dtype=torch.uint8)
        for i in range(0, len(target), rows):
            part = target[i : i + rows]
            raw = scratch[: len(part) * row_bytes]
            self.file.read_into(self.offset + i * row_bytes, [(self.key, raw.numpy().data)])
            part.copy_(raw.view(self.stored.dtype).view(part.shape))


def steps_for(
    stretch: Stretch, packing: Packing, stored: Mapping[str, StoredTensor], files: Mapping[Path, WeightFile]
) -> list[Run | Conversion]:
    runs: list[Run] = []
    conversions = []
    for name, packed in sorted(
        packing.tensors.items(), key=lambda item: (stored[item[0]].file, stored[item[0]].offset)
    ):
        source, file = stored[name], files[stored[name].file]
        first, end = stretch.part(packed)
        if first == end:
            continue
        target = packed.offset + first - stretch.start
        if packed.dtype != source.dtype or not _is_in_rows(packed):
            conversions.append(Conversion(stretch.unit, file, source, packed, first, end, target))
            continue
        for piece in _pieces(source, first, end, target):
            if not runs or not _continues(runs[-1], file, piece):
                runs.append(Run(stretch.unit, file, []))
            runs[-1].pieces.append(piece)
    return [*runs, *conversions]


def _is_in_rows(packed: PackedTensor) -> bool:
    return torch.empty_strided(packed.shape, packed.stride, device="meta").is_contiguous()


def _pieces(stored: StoredTensor, first: int, end: int, target: int) -> Iterator[Piece]:
    for start in range(first, end, RUN_BYTES):
        num_bytes = min(RUN_BYTES, end - start)
        yield Piece(stored.key, stored.offset + start, num_bytes, target + start - first)


def _continues(run: Run, file: WeightFile, piece: Piece) -> bool:
    fits = len(run.pieces) < _RUN_PIECES and run.num_bytes + piece.num_bytes <= RUN_BYTES
    return fits and run.file is file and run.offset + run.num_bytes == piece.offset
