"""NaN and infinity are failures, wherever they are."""

import pytest
import torch

from runner.calls.finite import NotFinite, require_finite


def test_finite_values_pass_and_others_do_not() -> None:
    require_finite("x", (torch.ones(2), {"a": [torch.zeros(2, dtype=torch.int64)]}, None, "text"))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NotFinite, match=r"latents: 1 of 3"):
            require_finite("latents", ((torch.tensor([1.0, bad, 2.0]),), {}))
