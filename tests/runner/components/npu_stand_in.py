"""A call on a device type of the name npu, which has no inference mode. argv: the folder of the tiny pipelines."""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from runner.calls.boundary import Boundaries
from runner.calls.lockstep import Lockstep
from runner.components.resolver import ExecutionMode, enter, resolve
from runner.components.stages import components_of
from runner.config import Leave
from runner.progress import Progress
from runner.trace.recorder import Recorder
from tests import tiny

if __name__ == "__main__":
    torch.utils.rename_privateuse1_backend("npu")
    device = torch.device("npu")
    family = tiny.FAMILIES["pixart"]
    path = tiny.build("pixart", Path(sys.argv[1]))
    expected = tiny.stock(path, family, family.prompts[0], 0)

    pipeline = tiny.load_stock(path)
    components = components_of(pipeline)
    seen = []
    for component in components:
        component.module.register_forward_pre_hook(
            lambda *_: seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        )
    decisions = resolve(components, Leave.component)
    recorder = Recorder()
    boundaries = Boundaries(components, decisions, device.type, Lockstep(None), Progress(), recorder)
    with enter(ExecutionMode.INFERENCE, device.type), boundaries.request():
        made = pipeline(
            **family.call,
            prompt=family.prompts[0],
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )[family.output]
    assert seen and set(seen) == {(False, False)}, seen
    assert set(recorder.stages()) == {"encode", "denoise", "decode"}
    assert np.array_equal(made, expected)
