"""A case of the census, made by the stock pipeline and by the same one with its calls shared out over the ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torch.distributed as dist

from runner.calls.lockstep import Lockstep
from runner.calls.randomness import set_global_generators
from runner.components.stages import components_of
from runner.rounds.round import Shared
from runner.rounds.rounds import Rounds
from tests.census.arms import _in_a_row
from tests.census.case import Case, replaced
from tests.census.files import read_as_stock, write_file
from tests.ranks import World

CPU = torch.device("cpu")


class Both:
    """One stock pipeline, whose parts are the same on every rank; `share_out` lays rounds over it."""

    def __init__(self, world: World, case: Case, call: Mapping[str, Any]) -> None:
        self._case, self._folder, self._call = case, world.tmp_path, {**case.call, **call}
        if world.rank == 0:
            for name in case.files:
                write_file(world.tmp_path, name)
        dist.barrier()
        self.stock = getattr(diffusers, case.pipeline)(**case.parts())
        case.prepare(self.stock)
        self.stock.set_progress_bar_config(disable=True)
        if case.dtype != "float32":
            self.stock.to(dtype=getattr(torch, case.dtype))
        self.made = 0  # forwards of the transformers, on this rank
        for component in components_of(self.stock):
            for tensor in (*component.module.parameters(), *component.module.buffers()):
                dist.broadcast(tensor.data, 0)  # a few are random anew in each process
            if component.name.startswith("transformer"):
                component.module.register_forward_hook(self._count)
        self.rounds: Rounds | None = None

    def _count(self, *_: Any) -> None:
        self.made += 1

    _count.__module__ = "offload"  # calls with a stranger's hooks inside are not shared out

    def make(self, seed: int, **differs: Any) -> list[np.ndarray]:
        """The fields of the output that are numbers, each in a row."""
        case, given = self._case, {**self._call, **differs}
        call = {key: case.stock.get(key, lambda one: one)(replaced(value, self._read)) for key, value in given.items()}
        if case.prompt is not None and "prompt" not in call:
            label = isinstance(case.prompt, int)
            call["class_labels" if label else "prompt"] = [case.prompt] if label else case.prompt
        set_global_generators(seed, CPU)
        generator = torch.Generator("cpu").manual_seed(seed)
        with torch.inference_mode():
            if self.rounds is None:
                output = self.stock(**call, generator=generator, output_type="np")
            else:
                with self.rounds.shared.lockstep.request(), self.rounds.request(generator):
                    output = self.stock(**call, generator=generator, output_type="np")
        return [row for value in output.values() if (row := _in_a_row(value)) is not None]

    def share_out(self) -> Rounds:
        group = dist.group.WORLD
        self.rounds = Rounds(components_of(self.stock), Shared(Lockstep(group), CPU, group, group))
        return self.rounds

    def _read(self, file: Any) -> Any:
        return read_as_stock(Path(self._folder) / file.name, file.mode)


def same(made: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return len(made) == len(wanted) and all(map(np.array_equal, made, wanted))
