"""While a picture is denoised, nothing of ours makes the host wait for the device: work is queued ahead of it."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runner.pipeline.pipeline import Pipeline
from tests.distributed.placed import call, opened
from tests.ranks import World, on_ranks

ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(str(ROOT / package) for package in ("runner", "offload", "sharding", "lora", "weights"))
WAITS = {"synchronize", "tolist", "item"}  # of streams, events and tensors
PLACEMENTS: dict[str, Sequence[str]] = {
    "resident": [],
    "host": ["placement.default.rest=host"],
    "disk": ["placement.default.rest=disk", "placement.transformer.window=3"],
    "some resident": ["placement.default.rest=host", "placement.transformer.resident_blocks=1"],
}


class Waits(TorchDispatchMode):
    """By stage, how often the thread that computes waited for the device, and the line of ours that made it wait."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.found: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_device = any(tensor.device.type == "soft" for tensor in given)
        name = func._schema.name
        written = args[0] if name == "aten::copy_" else result
        to_host = isinstance(written, torch.Tensor) and written.device.type == "cpu"
        # In inference mode what is made of other operators comes whole: bool() is is_nonzero, .cpu() is to.
        reads = name in ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero")
        if on_device and (reads or (name in ("aten::copy_", "aten::_to_copy", "aten::to") and to_host)):
            self.note(sys._getframe(1))
        return result

    def note(self, frame: FrameType | None) -> None:
        """The nearest line that is not torch's is whose wait it is: the pipeline's and the models' are theirs."""
        while frame is not None and "/torch/" in frame.f_code.co_filename:
            frame = frame.f_back
        if frame is not None and frame.f_code.co_filename.startswith(OURS):
            place = f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
            self.found[self.pipeline.progress.stage or "", place] += 1

    def profile(self, frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and getattr(called, "__name__", "") in WAITS:
            self.note(frame)


@contextmanager
def waits(pipeline: Pipeline) -> Iterator[Waits]:
    found = Waits(pipeline)
    sys.setprofile(found.profile)
    try:
        with found:
            yield found
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("family", ["flux"])
@on_ranks(1, soft=True)
def test_the_host_waits_for_nothing_of_ours_until_the_picture_is_decoded(
    world: World, family: str, path: Path, placement: str
) -> None:
    pipeline = opened(world, path, *PLACEMENTS[placement], "execution.leave_inference=weights")
    call(pipeline, family, 0)
    with waits(pipeline) as found:
        call(pipeline, family, 1)
    stages = {stage for stage, _ in found.found}
    assert not stages & {"encode", "denoise"}, found.found
    assert any(place.startswith("runner/calls/finite.py") for _, place in found.found), "and waits are seen at all"
