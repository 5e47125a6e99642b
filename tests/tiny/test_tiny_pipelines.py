"""The tiny pipelines are a sound oracle: stock diffusers loads them, and their pictures depend on every block."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from tests import tiny

SEED = 0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module", params=list(tiny.FAMILIES))
def family(request: pytest.FixtureRequest) -> tiny.TinyPipeline:
    return tiny.FAMILIES[request.param]


@pytest.fixture(scope="module")
def path(family: tiny.TinyPipeline, root: Path) -> Path:
    return tiny.build(family.name, root)


@pytest.fixture(scope="module")
def pipeline(path: Path) -> DiffusionPipeline:
    return tiny.load_stock(path)


@pytest.fixture(scope="module")
def picture(pipeline: DiffusionPipeline, family: tiny.TinyPipeline) -> np.ndarray:
    return tiny.call_stock(pipeline, family, family.prompts[0], SEED)


def blocks(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The elements of the outermost ModuleLists, by dotted name."""
    for name, child in module.named_children():
        name = f"{prefix}.{name}"
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{i}", block) for i, block in enumerate(child))
        else:
            yield from blocks(child, name)


@torch.no_grad()
def perturb(block: nn.Module) -> None:
    generator = torch.Generator().manual_seed(SEED)
    for parameter in block.parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def test_loads_as_the_declared_components(path: Path, family: tiny.TinyPipeline) -> None:
    pipeline = DiffusionPipeline.from_pretrained(path)
    for name in (*family.denoisers, *family.text_encoders, "vae"):
        assert isinstance(getattr(pipeline, name), nn.Module), name


def test_picture_is_finite_and_not_constant(picture: np.ndarray) -> None:
    assert np.isfinite(picture).all()
    assert picture.std() > 0.05
    assert ((picture > 0) & (picture < 1)).mean() > 0.5  # the picture is clamped: most of it must not be at the stops


def test_prompts_and_seeds_give_different_pictures(pipeline: DiffusionPipeline, family: tiny.TinyPipeline) -> None:
    calls = [*((prompt, SEED) for prompt in family.prompts), (family.prompts[0], SEED + 1)]
    pictures = [tiny.call_stock(pipeline, family, prompt, seed) for prompt, seed in calls]
    for one, other in combinations(pictures, 2):
        assert np.abs(one - other).max() > 0.01


def test_fresh_loads_agree_bit_for_bit(path: Path, family: tiny.TinyPipeline, picture: np.ndarray) -> None:
    np.testing.assert_array_equal(tiny.stock(path, family, family.prompts[0], SEED), picture)


def test_runs_in_bfloat16(path: Path, family: tiny.TinyPipeline) -> None:
    picture = tiny.stock(path, family, family.prompts[0], SEED, dtype=torch.bfloat16)
    assert np.isfinite(picture).all()
    assert picture.std() > 0.05


def test_picture_depends_on_every_block(
    pipeline: DiffusionPipeline, family: tiny.TinyPipeline, picture: np.ndarray
) -> None:
    for component in (*family.denoisers, *family.text_encoders):
        module = getattr(pipeline, component)
        named = dict(blocks(module, component))
        assert len(named) >= (4 if component in family.denoisers else 3)
        for name, block in named.items():
            weights = {key: value.clone() for key, value in block.state_dict().items()}
            perturb(block)
            change = np.abs(tiny.call_stock(pipeline, family, family.prompts[0], SEED) - picture).max()
            block.load_state_dict(weights)
            if name.startswith(family.unread):
                assert change == 0, name
            else:
                assert change > 0.01, name


def test_builds_the_same_bytes_again(path: Path, family: tiny.TinyPipeline, tmp_path: Path) -> None:
    again = tiny.build(family.name, tmp_path)
    names = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
    assert names == sorted(file.relative_to(again) for file in again.rglob("*") if file.is_file())
    for name in names:
        assert (path / name).read_bytes() == (again / name).read_bytes(), name
    assert sum((path / name).stat().st_size for name in names) < 5 * 2**20


def test_the_first_of_two_builders_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drafts: list[Path] = []

    def write(draft: Path) -> None:
        drafts.append(draft)
        if len(drafts) == 1:  # a second process starts, and finishes, while the first is still writing
            tiny.build("raced", tmp_path)
        (draft / "writer").write_text(str(drafts.index(draft)))

    monkeypatch.setitem(tiny.FAMILIES, "raced", tiny.TinyPipeline(name="raced", build=write, call={}))
    assert tiny.build("raced", tmp_path) == tmp_path / "raced"
    assert (tmp_path / "raced" / "writer").read_text() == "1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["raced"]


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(draft: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setitem(tiny.FAMILIES, "failing", tiny.TinyPipeline(name="failing", build=fail, call={}))
    with pytest.raises(OSError, match="disk full"):
        tiny.build("failing", tmp_path)
    assert not list(tmp_path.iterdir())
