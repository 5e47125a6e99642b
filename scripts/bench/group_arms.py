"""The ways to make the same pictures: resident, in groups of several sizes, and as the peers do."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch

import offload
from bench.group_cases import Case
from runner.config import load_config
from runner.groups.meter import Meter
from runner.job.group_size import Choice, GroupSize, choose
from runner.job.waves import rows
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from runner.world import World

RESIDENT, AUTO, MEASURED, FRESH = "resident", "auto", "auto, once measured", "N = 1, never in a group"
PEERS = ("diffusers", "accelerate")


@dataclass
class Arms:
    """Each makes all pictures and returns them. `choice` is what `auto` chose last, in which round."""

    case: Case
    world: World
    folder: Path
    choice: Choice | None = None
    arms: dict[str, Callable[[], list[torch.Tensor]]] = field(default_factory=dict)
    _pipelines: list[Pipeline] = field(default_factory=list)

    def __post_init__(self) -> None:
        case = self.case
        call = {
            "num_inference_steps": case.steps,
            "height": case.size,
            "width": case.size,
            "guidance_scale": 1.0,
            "use_resolution_binning": False,
            "max_sequence_length": 16,  # a prompt is padded to it: as short as these are, the encoder computes little
        }
        self.requests = [Request(f"a rocket number {n}", n, call, output_type="np") for n in range(case.pictures)]
        self._resident, self._moved = self._opened(), self._opened(*case.placement)
        self.arms[RESIDENT] = lambda: _one_by_one(self._resident, self.requests)
        for number in case.numbers:
            self.arms[f"N = {number}"] = lambda number=number: self._together(self.requests, number)
        if case.over_fresh is not None:
            fresh = self._opened(*case.placement)
            self.arms[FRESH] = lambda: _one_by_one(fresh, self.requests)
        self.arms[AUTO], self.arms[MEASURED] = self._auto, self._chosen
        for name in PEERS if case.peers else ():
            self.arms[name] = self._peer(name)

    def close(self) -> None:
        self.arms.clear()
        for pipeline in self._pipelines:
            pipeline.close()

    @property
    def dit_bytes(self) -> int:
        """That come up in a pass."""
        offloader = offload.offloader_of(self._moved.stock.transformer)
        assert offloader is not None
        return sum(offloader.store.packings[name].num_bytes for name in offloader.moving_blocks)

    @property
    def dit_seconds(self) -> float:
        """That it computes in a pass, resident."""
        transformer: Any = self._resident.stock.transformer
        spent: list[float] = []

        def begin(*_: Any) -> None:
            spent.append(-time.perf_counter())

        def end(*_: Any) -> None:
            spent[-1] += time.perf_counter()

        handles = [transformer.register_forward_pre_hook(begin), transformer.register_forward_hook(end)]
        self._resident(self.requests[0])
        for handle in handles:
            handle.remove()
        return min(spent)

    def _opened(self, *words: str) -> Pipeline:
        config = load_config(None, [f"model.path={self.folder}", "model.dtype=float32", *words])
        self._pipelines.append(open_pipeline(config, self.world))
        return self._pipelines[-1]

    def _together(self, requests: list[Request], number: int, meter: Meter | None = None) -> list[torch.Tensor]:
        if number == 1 and meter is None:
            return _one_by_one(self._moved, requests)
        made: dict[int, torch.Tensor] = {}
        for first in range(0, len(requests), number):
            group = requests[first : first + number]

            def ended(index: int, outcome: Callable[[], Any], seconds: float, first: int = first) -> None:
                made[first + index] = torch.as_tensor(outcome()[0][0])

            self._moved.make_together(group, [None] * len(group), ended, meter=meter)
        return [made[index] for index in range(len(requests))]

    def _auto(self) -> list[torch.Tensor]:
        """As a job does: one that is measured, then waves as alike as can be, measured as long as they grow."""
        size, made = GroupSize("auto", self._moved), []
        while left := self.requests[len(made) :]:
            meter = size.meter()
            made += self._together(left[: rows(len(left), 1, size.together)], size.together, meter)
            if meter is not None:
                size.choose(meter, len(self.requests) - len(made))
                self.choice = size.choice
        return made

    def _chosen(self) -> list[torch.Tensor]:
        """In groups of the size that `_auto` would choose for as many requests, had it measured before."""
        assert self.choice is not None
        number = choose(self.choice.figures, len(self.requests)).number
        return self._together(self.requests, rows(len(self.requests), 1, number))

    def _peer(self, name: str) -> Callable[[], list[torch.Tensor]]:
        stock: Any = diffusers.DiffusionPipeline.from_pretrained(self.folder, dtype=torch.float32)
        for component in ("transformer", "text_encoder"):
            rests = self.folder.parent / f"{name}-{component}"
            (_by_diffusers if name == "diffusers" else _by_accelerate)(getattr(stock, component), rests)
        stock.set_progress_bar_config(disable=True)
        return lambda: [_by_stock(stock, request) for request in self.requests]


def _one_by_one(pipeline: Pipeline, requests: list[Request]) -> list[torch.Tensor]:
    return [torch.as_tensor(pipeline(request)[0][0]) for request in requests]


def _by_diffusers(module: Any, folder: Path) -> None:
    cpu = torch.device("cpu")
    diffusers.hooks.apply_group_offloading(
        module, onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1,
        offload_to_disk_path=str(folder),
    )  # fmt: skip


def _by_accelerate(module: Any, folder: Path) -> None:
    accelerate.disk_offload(module, str(folder), execution_device=torch.device("cpu"), offload_buffers=True)


def _by_stock(stock: Any, request: Request) -> torch.Tensor:
    generator = torch.Generator().manual_seed(request.seed)
    with torch.inference_mode():
        made = stock([request.prompt], **request.call, generator=generator, output_type="np")
    return torch.as_tensor(made.images[0])


@contextmanager
def paced(bandwidth: float) -> Iterator[None]:
    """Our reads take as long as at so many GB/s; 0: as long as they take. The peers read as they do, so they are
    compared with the disk as it is."""
    read = offload.DiskStore.read

    def slowly(self: Any, unit: str, out: torch.Tensor) -> None:
        start = time.perf_counter()
        read(self, unit, out)
        time.sleep(max(0.0, out.numel() / (bandwidth * 1e9) - (time.perf_counter() - start)))

    if bandwidth:
        offload.DiskStore.read = slowly  # type: ignore[method-assign]
    try:
        yield
    finally:
        offload.DiskStore.read = read  # type: ignore[method-assign]
