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

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

import torch

from offload.stores.packing import Packing, pack
from offload.stores.steps import Conversion, Run, Stretch, steps_for
from offload.stores.store import check_stretch
from weights.agreement import Group
from weights.checkpoint import Checkpoint, CheckpointError, match_keys, refuse_unfit
from weights.files import why_unreadable
from weights.weight_file import WeightFile


class DiskStore:
    """A `Store` whose units are read from the safetensors files whenever they are wanted.

    `units`: by unit name, by the module's name for each tensor, a tensor (meta will do) of the shape, dtype and
    strides that are wanted. All of the module's parameters and persistent buffers must be there, a tied one once,
    and its other names in `aliases`. `keep_pages`: what is read stays in the page cache, for others.

    Raises, before any weight is read: KeysDiffer where the files lack some of these (then let the library load the
    module, and use `HostStore.from_tensors`), CheckpointError for files or shapes that are wrong.
    """

    rest: Literal["host", "disk"] = "disk"
    readers: Group = None
    packings: Mapping[str, Packing]

    def __init__(
        self,
        checkpoint: Checkpoint,
        units: Mapping[str, Mapping[str, torch.Tensor]],
        *,
        aliases: Mapping[str, Sequence[str]] | None = None,
        keep_pages: bool = False,
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
                self._files[path] = WeightFile(path, before.get(path), keep_pages=keep_pages)
        except OSError as error:
            self.close()
            raise CheckpointError(why_unreadable(Path(error.filename), error)) from error
        self._stored = stored
        self._steps: dict[Stretch, list[Run | Conversion]] = {}

    def view(self, unit: str) -> None:
        """None: what is on disk must be read."""
        return None

    def read(self, unit: str, out: torch.Tensor, start: int = 0) -> None:
        """Fill `out`, uint8 in host memory, with the unit's bytes from `start` on; those between the tensors stay as
        they are. `start` is a multiple of ALIGNMENT, and so is its end, or it is the unit's.

        Any number of threads may read at once. The GIL is released meanwhile. Raises StoreError, naming file and
        tensor, where the file cannot be read, or is no longer the one whose header was read.
        """
        check_stretch(self.packings[unit], out, start)
        _fill(self._steps_of(Stretch(unit, start, start + out.numel())), lambda _: out)

    def read_share(self, unit_bytes: Callable[[str], torch.Tensor], share: int, num_shares: int) -> None:
        """Fill one of `num_shares` parts, alike in bytes, of all units: `unit_bytes(unit)` as `out` of `read`.

        Each part lies together in the files. `num_shares` calls, in whatever processes, fill every unit.
        """
        wholes = [Stretch(unit, 0, packing.num_bytes) for unit, packing in self.packings.items()]
        steps = sorted(chain(*map(self._steps_of, wholes)), key=lambda step: (step.file.path, step.offset))
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

    def _steps_of(self, stretch: Stretch) -> list[Run | Conversion]:
        """How to read it, worked out once: blocks are read again and again, in the same stretches."""
        if stretch not in self._steps:
            self._steps[stretch] = steps_for(stretch, self.packings[stretch.unit], self._stored, self._files)
        return self._steps[stretch]


def _fill(steps: Iterable[Run | Conversion], unit_bytes: Callable[[str], torch.Tensor]) -> None:
    read_from: dict[WeightFile, str] = {}
    for step in steps:
        step.fill(unit_bytes(step.unit))
        read_from[step.file] = step.key
    for file, key in read_from.items():
        file.refuse_change(key)
