"""The stacked Muon does what torch's own does, matrix by matrix."""

import pytest
import torch

from scripts.emoji.muon import Muon, orthogonalise

SHAPES = [(16, 16), (16, 16), (48, 16), (16, 48)]


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.3 and values.max() < 1.4


def test_steps_agree_with_torch_muon() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in SHAPES]
    ours, theirs = ([torch.nn.Parameter(value.clone()) for value in start] for _ in range(2))
    optimizers = [
        Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn="original"),
    ]
    for _ in range(3):
        gradients = [torch.randn(shape, generator=generator) for shape in SHAPES]
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    for our, their, value in zip(ours, theirs, start, strict=True):
        moved = (their - value).norm()
        assert (our - their).norm() < 0.05 * moved  # both orthogonalise in bfloat16, in another order
