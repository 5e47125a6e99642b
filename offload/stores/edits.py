"""Edits over weights that rest on disk: made anew at each read, so the files stay as they are."""

from collections.abc import Mapping
from typing import Literal

import torch

from offload.stores.disk import DiskStore
from offload.stores.packing import Packing, view
from offload.stores.store import Edit


class EditedFiles:
    """A `Store`: a DiskStore whose weights can be edited. Costs arithmetic at each read, and no memory to speak of."""

    rest: Literal["host", "disk"] = "disk"
    packings: Mapping[str, Packing]

    def __init__(self, files: DiskStore) -> None:
        self.packings = files.packings
        self._files = files
        self._edits: dict[str, dict[str, Edit]] = {}

    def view(self, unit: str) -> None:
        return None

    def read(self, unit: str, out: torch.Tensor) -> None:
        self._files.read(unit, out)
        for name, edit in self._edits.get(unit, {}).items():
            edit(view(self.packings[unit].tensors[name], out))

    def edit(self, edits: Mapping[str, Edit]) -> None:
        self._edits = by_unit(self.packings, edits)

    def close(self) -> None:
        self._files.close()


def by_unit(packings: Mapping[str, Packing], edits: Mapping[str, Edit]) -> dict[str, dict[str, Edit]]:
    """The edits of each unit that has any."""
    units: dict[str, dict[str, Edit]] = {}
    unit_of = {name: unit for unit, packing in packings.items() for name in packing.tensors}
    for name, edit in edits.items():
        units.setdefault(unit_of[name], {})[name] = edit
    return units
