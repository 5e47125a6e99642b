"""What mesh.context can share out, and what is refused, in words, before any weights are loaded."""

import json
from pathlib import Path

import pytest
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from runner.components.context_fit import check_context, context_that_fits
from runner.components.directory import read_directory
from runner.errors import UserError
from tests import tiny


@pytest.mark.parametrize(
    ("family", "components"),
    [("flux", ("transformer",)), ("qwenimage", ("transformer",)), ("wan22", ("transformer", "transformer_2"))],
)
def test_components_with_a_plan(family: str, components: tuple[str, ...], tiny_root: Path) -> None:
    directory = read_directory(tiny.build(family, tiny_root))
    assert check_context(directory, 2) == check_context(directory, 4) == components
    assert check_context(directory, 1) == ()


@pytest.mark.parametrize(
    ("family", "ranks", "words"),
    [
        ("flux", 3, "transformer (FluxTransformer2DModel) has 4 heads, which 3 ranks do not divide; 1, 2, 4 do"),
        ("ltx", 2, "transformer (LTXVideoTransformer3DModel) cannot share out its tokens: its mask has a row for each"),
        ("sana", 2, "diffusers has no plan to share out the tokens of any of "),
        ("dit", 2, "mesh.guidance"),
    ],
)
def test_others_are_refused_by_name(family: str, ranks: int, words: str, tiny_root: Path) -> None:
    with pytest.raises(UserError, match=f"mesh.context={ranks}: ") as refused:
        check_context(read_directory(tiny.build(family, tiny_root)), ranks)
    assert words in str(refused.value)


def test_a_setting_that_the_plan_does_not_know(tmp_path: Path) -> None:
    path = _changed(tiny.build("wan", tmp_path), "HeliosTransformer3DModel", is_amplify_history=True)
    with pytest.raises(UserError, match="with is_amplify_history cannot share out its tokens"):
        check_context(read_directory(path), 2)


def test_an_attention_backend_that_cannot_exchange(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = read_directory(tiny.build("flux", tiny_root))
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", AttentionBackendName.FLEX)
    with pytest.raises(UserError, match=r"the attention backend flex cannot exchange tokens; these can: .*native"):
        check_context(directory, 2)


def _changed(path: Path, kind: str, **settings: object) -> Path:
    """The same directory with another transformer."""
    index = path / "model_index.json"
    index.write_text(index.read_text().replace("WanTransformer3DModel", kind))
    config = path / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": kind, **settings}))
    return path


def test_compiled_blocks(tiny_root: Path) -> None:
    directory = read_directory(tiny.build("flux", tiny_root))
    assert check_context(directory, 1, compiled=True) == ()
    with pytest.raises(UserError, match=r"^mesh.context=2 with execution.compile: .*leave one of the two out"):
        check_context(directory, 2, compiled=True)


def test_what_is_chosen_where_nobody_said_how_many_is_proven_divides_and_is_few(tiny_root: Path) -> None:
    flux, sana = (read_directory(tiny.build(family, tiny_root)) for family in ("flux", "sana"))
    assert context_that_fits(flux, 8, compiled=False) == [1, 2, 4], "of four heads"
    assert context_that_fits(flux, 6, compiled=False) == [1, 2]
    assert context_that_fits(flux, 8, compiled=True) == context_that_fits(sana, 8, compiled=False) == [1]
