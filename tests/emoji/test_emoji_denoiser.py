"""The denoiser's parts: which parameters each optimizer owns, how poses spread, and the average."""

import pytest
import torch

from scripts.emoji.denoiser import TextToLatents, averaged, build_denoiser, build_optimizers, draw_times, pose_spread
from scripts.emoji.latents import EncodedScenes
from scripts.emoji.pictures import draw_icons


@pytest.fixture(scope="module")
def model() -> TextToLatents:
    return build_denoiser()


def test_every_parameter_has_exactly_one_optimizer(model: TextToLatents) -> None:
    optimizers = build_optimizers(model)
    owned = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(parameter) for parameter in model.parameters())


def test_an_untrained_denoiser_predicts_nothing(model: TextToLatents) -> None:
    tokens = torch.tensor([[3, 4, 1]])
    velocity = model(torch.randn(1, 4, 16, 16), torch.tensor([0.5]), tokens, torch.ones_like(tokens))
    assert torch.equal(velocity, torch.zeros(1, 4, 16, 16))


def test_padding_does_not_change_a_prediction(model: TextToLatents) -> None:
    torch.manual_seed(0)
    torch.nn.init.normal_(model.transformer.proj_out.weight, std=0.1)
    noisy, time = torch.randn(1, 4, 16, 16), torch.tensor([0.5])
    short, long = torch.tensor([[3, 4, 1]]), torch.tensor([[3, 4, 1, 0, 0]])
    with torch.no_grad():
        plain = model(noisy, time, short, torch.ones_like(short))
        padded = model(noisy, time, long, torch.tensor([[1, 1, 1, 0, 0]]))
    assert plain.abs().max() > 0.1
    torch.testing.assert_close(padded, plain)


def test_poses_spread_from_usual_to_whole() -> None:
    spreads = [pose_spread(progress / 100) for progress in range(101)]
    assert spreads[0] == 0 and spreads[-1] == 1
    assert spreads == sorted(spreads)


def test_scenes_within_a_spread_are_the_first_ones() -> None:
    scenes = draw_icons(1, torch.Generator().manual_seed(0))[:4]
    encoded = EncodedScenes(torch.zeros(4, 4, 16, 16), torch.tensor([0.0, 0.0, 0.4, 1.0]), scenes)
    assert [encoded.num_within(spread) for spread in (0.0, 0.3, 0.4, 1.0)] == [2, 2, 3, 4]


def test_noise_levels_stay_in_range() -> None:
    times = draw_times(1000, torch.Generator().manual_seed(0))
    assert times.min() >= 0 and times.max() <= 1
    assert times.median() > 0.5


def test_the_average_follows_quickly_at_first() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    average = averaged(layer)
    average.update_parameters(layer)
    torch.nn.init.ones_(layer.weight)
    average.update_parameters(layer)
    assert average.module.weight.item() == pytest.approx(1 - 2 / 11)
