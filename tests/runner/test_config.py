from pathlib import Path

import pytest

from runner.config import DType, Rest, Share, describe, load_config, to_yaml
from runner.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_defaults_then_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("job: {seed: 3, images_per_prompt: 2}\n")
    config = load_config(file, ["job.seed=7", "placement.vae.share=shard", "placement.default.rest=host"])
    assert (config.job.seed, config.job.images_per_prompt) == (7, 2)
    assert config.placement["vae"].share is Share.shard
    assert config.placement["default"].rest is Rest.host
    assert config.model.dtype is DType.float32


def test_printed_config_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "generate.yaml", ["job.call.width=32", "placement.vae.window=all"])
    file = tmp_path / "printed.yaml"
    file.write_text(to_yaml(config))
    assert load_config(file, []) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("job.sed=1", "nearest is 'job.seed'"),
        ("placement.vae.shre=shard", "nearest is 'placement.vae.share'"),
        ("jobb.seed=1", "nearest is 'job.seed'"),
        ("job.seed=abc", "job.seed"),
        ("model.dtype=float31", "float32, bfloat16, float16"),
        ("job.images_per_prompt=0", "at least 1"),
        ("placement.vae.window=0", "placement.vae.window"),
        ("placement.vae.resident_blocks=-1", "resident_blocks"),
        ("seven", "key=value"),
        ("job.call=3", "job.call"),
        ("job.prompt={a", "job.prompt={a"),
    ],
)
def test_wrong_overrides_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, [override])


def test_a_missing_or_broken_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml", [])
    broken = tmp_path / "broken.yaml"
    broken.write_text("job: [")
    with pytest.raises(UserError, match=r"broken\.yaml"):
        load_config(broken, [])


def test_every_key_has_a_line_of_help() -> None:
    described = {key: text for key, _, text in describe()}
    assert all(described.values())
    assert {"model.path", "placement.<component>.share", "job.call.<argument>", "mesh.shard"} <= set(described)
