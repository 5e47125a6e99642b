"""Which arithmetic is asked for is set once, refused where there is none, and part of the id where it moves bits."""

from collections.abc import Iterator

import pytest
import torch

from runner.errors import UserError
from runner.numerics import flags, flags_that_decide, made_on, settle_numerics
from runner.output.recipe import key_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)  # a name is enough: no kernel runs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


def test_unset_leaves_what_a_plain_script_has() -> None:
    before = flags()
    settle_numerics(CUDA, None)
    assert flags() == {**before, "cudnn_benchmark": False}
    assert flags()["float32_matmul"] == "highest" and flags()["cudnn_tf32"] is True, "torch's defaults"


@pytest.mark.parametrize(("tf32", "precision"), [(True, "high"), (False, "highest")])
def test_tf32_is_for_products_and_convolutions_alike(tf32: bool, precision: str) -> None:
    settle_numerics(CUDA, tf32)
    assert (flags()["float32_matmul"], flags()["cudnn_tf32"]) == (precision, tf32)


def test_which_algorithm_is_fastest_is_not_tried() -> None:
    torch.backends.cudnn.benchmark = True
    settle_numerics(CUDA, None)
    assert flags()["cudnn_benchmark"] is False


@pytest.mark.parametrize("tf32", [True, False])
def test_a_device_without_tf32_refuses_it(tf32: bool) -> None:
    with pytest.raises(UserError, match=r"execution\.tf32=.*: cpu has no TF32"):
        settle_numerics(CPU, tf32)


def test_flags_decide_on_an_accelerator_only_whoever_set_them() -> None:
    assert flags_that_decide(CPU) == {}
    settle_numerics(CUDA, None)
    plain = flags_that_decide(CUDA)
    torch.backends.cuda.matmul.allow_tf32 = True  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE does
    assert flags_that_decide(CUDA) != plain
    assert {key_of(name) for name in plain} == set(plain), "a recipe calls them what they are"


def test_a_line_says_what_made_it() -> None:
    told = made_on(CPU)
    assert told["device"].startswith("cpu ") and torch.__version__.startswith(told["torch"].partition("+")[0])
    assert {"torch", "diffusers", "transformers", "python"} <= told.keys()
