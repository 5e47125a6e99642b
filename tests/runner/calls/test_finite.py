"""NaN and infinity are failures, wherever they are."""

import pytest
import torch

from runner.calls.finite import NotFinite, require_finite


def test_finite_values_pass_and_others_do_not() -> None:
    require_finite("x", (torch.ones(2), {"a": [torch.zeros(2, dtype=torch.int64)]}, None, "text"))
    require_finite("x", [torch.empty(0), torch.tensor(1.0)])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        require_finite("x", torch.full((2, 3), -1e4, dtype=dtype))
        with pytest.raises(NotFinite, match=r"x: 1 of 6"):
            require_finite("x", torch.tensor([[1, 2, float("nan")], [4, 5, 6]], dtype=dtype))
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(NotFinite, match=r"latents: 1 of 3"):
            require_finite("latents", ((torch.tensor([1.0, bad, 2.0]),), {}))
