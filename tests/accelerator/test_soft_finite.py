"""The look for NaN at the decoder, where memory is at its peak, takes none of its own on the device."""

import pytest
import torch

from runner.calls.finite import NotFinite, require_finite
from tests.ranks import World, on_ranks


@on_ranks(1, soft=True)
def test_looking_for_nan_takes_no_memory_of_the_pixels_size(world: World) -> None:
    pixels = torch.zeros(2**20, device=world.device)
    before = torch.accelerator.memory_allocated()
    torch.accelerator.reset_peak_memory_stats()
    require_finite("pixels", pixels)
    assert torch.accelerator.max_memory_allocated() - before < pixels.nbytes / 100
    for wrong in (float("nan"), float("inf")):
        pixels[7] = wrong
        with pytest.raises(NotFinite, match="1 of 1048576 values"):
            require_finite("pixels", pixels)
