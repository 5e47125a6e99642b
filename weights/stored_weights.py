"""A component's weights, read again from its files while the component is in use."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from weights.checkpoint import Checkpoint, StoredTensor, match_keys
from weights.weight_file import StoreError, WeightFile


class StoredWeights:
    """Reads any weight of a component, or the part of it that a rank holds, as its files have it.

    `tied`: every weight of the module (persistent buffers too), by all the names it has there. Only headers are read
    at first. Raises what `match_keys` raises.
    """

    def __init__(self, checkpoint: Checkpoint, tied: Iterable[Sequence[str]]) -> None:
        tied = list(tied)
        before = checkpoint.identities()
        matched = match_keys(checkpoint, tied)
        self._stored = {name: stored for names, stored in zip(tied, matched, strict=True) for name in names}
        self._identities = {stored.file: before.get(stored.file) for stored in matched}
        self._files: dict[Path, WeightFile] = {}

    def read(self, name: str, rows: slice, columns: slice) -> torch.Tensor:
        """The part of a weight of two dims or more: on the host, in the dtype it is stored in, in memory of its own.

        Reads all of the rows. Raises StoreError where they cannot be read, or the file was replaced.
        """
        stored = self._stored[name]
        out = torch.empty((rows.stop - rows.start, *stored.shape[1:]), dtype=stored.dtype)
        if out.numel():
            file = self._file(stored)
            start = stored.offset + rows.start * (stored.num_bytes // stored.shape[0])
            file.read_into(start, [(stored.key, out.view(torch.uint8).numpy().data.cast("B"))])
            file.refuse_change(stored.key)
        return out[:, columns]

    def close(self) -> None:
        """Idempotent. No read may be running."""
        while self._files:
            self._files.popitem()[1].close()

    def _file(self, stored: StoredTensor) -> WeightFile:
        path = stored.file
        if path not in self._files:
            try:
                self._files[path] = WeightFile(path, self._identities[path])
            except OSError as error:
                raise StoreError(f"{path} cannot be opened ({error.strerror}), needed for {stored.key}") from error
        return self._files[path]
