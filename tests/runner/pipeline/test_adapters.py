"""Adapters in a run: how they are configured, chosen, identified, and switched between requests."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from lora import Edits
from runner.config import LoraMode, RunConfig, load_config
from runner.errors import UserError
from runner.job.prompts import Prompt, read_prompts
from runner.job.requests import requests_of
from runner.pipeline.adapters import Adapters, recipe_of_lora
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from runner.world import World
from tests import tiny

ALONE = World(0, 1, torch.device("cpu"))
INK = Path(__file__).resolve().parents[3] / "models/emoji-dit-lora-ink"
CALL = {"height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 3.0, "use_resolution_binning": False}
RECIPE = {"weights": "w", "dtype": "float32"}


def configured(*adapters: dict[str, Any], mode: str = "merge") -> RunConfig:
    given = json.dumps(list(adapters))
    return load_config(None, [f"lora.adapters={given}", f"lora.mode={mode}"])


def opened(*adapters: dict[str, Any], mode: str = "merge") -> Pipeline:
    return open_pipeline(configured(*adapters, mode=mode), ALONE)


def ids(pipeline: Pipeline, lora: dict[str, float] | None = None) -> list[str]:
    config = load_config(None, ["job.images_per_prompt=2"])
    return [request.id for request in requests_of([Prompt("a cat", lora=lora)], config.job, pipeline, RECIPE)]


def test_a_list_is_short_for_the_adapters_and_the_mode_stays_apart(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "lora:\n- {path: some/ink.safetensors}\n- {path: b, name: other, strength: 0.5, components: [vae]}\n"
    )
    lora = load_config(file, ["lora.mode=dynamic"]).lora
    assert lora.mode is LoraMode.dynamic
    assert [(one.path, one.strength, one.components) for one in lora.adapters] == [
        ("some/ink.safetensors", 1.0, []),
        ("b", 0.5, ["vae"]),
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora=[{pth: a}]", "pth"),
        ("lora=[{strength: 1}]", r"lora\.adapters\[0\]\.path"),
        ("lora=[{path: a}, {path: b, name: a}]", "two of a;"),
        ("lora=[{path: a, strength: .nan}]", r"adapters\[0\]\.strength is nan"),
        ("lora=[{path: a, weight: 1}]", r"adapters\[0\]\.weight': .*is its strength; write strength: 0\.8"),
        ("lora.mode=fuse", "merge, dynamic"),
        ("lora.moed=merge", r"nearest is 'lora\.mode'"),
    ],
)
def test_wrong_settings_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, [override])


def test_prompt_files_choose_adapters(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "a"}, {"prompt": "b", "lora": {}}, {"prompt": "c", "lora": {"ink": 0.5, "other": -1}}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [prompt.lora for prompt in read_prompts(file)] == [None, {}, {"ink": 0.5, "other": -1}]
    assert all(not prompt.call for prompt in read_prompts(file))


@pytest.mark.parametrize("lora", ["ink", ["ink"], {"ink": "1"}, {"ink": True}, 3])
def test_prompt_files_with_other_choices_are_refused(lora: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "a", "lora": lora}))
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: lora .* finite number"):
        read_prompts(file)


def test_a_prompt_that_asks_for_an_unknown_adapter_is_named() -> None:
    with pytest.raises(UserError, match="prompt 1: lora 'oil' is not configured; there is ink"):
        ids(opened({"path": str(INK), "name": "ink"}), {"oil": 1.0})
    with pytest.raises(UserError, match=r"there is none; set lora\.adapters"):
        ids(open_pipeline(RunConfig(), ALONE), {"ink": 1.0})


def test_an_adapter_of_another_model_is_refused_when_opening(tiny_root: Path) -> None:
    model = tiny.build("flux", tiny_root)
    config = load_config(None, [f"model.path={model}", f"lora=[{{path: {INK}, name: ink}}]"])
    with pytest.raises(UserError, match=r"lora 'ink': .*match nothing"):
        open_pipeline(config, ALONE)


def test_the_id_holds_what_decides_the_pixels_and_nothing_else(tmp_path: Path) -> None:
    plain = ids(open_pipeline(RunConfig(), ALONE))
    one = opened({"path": str(INK), "name": "ink"})
    assert len({*plain, *ids(one), *ids(one, {"ink": 0.5})}) == 6
    assert ids(one, {"ink": 1.0}) == ids(one) and ids(one, {}) == ids(one, {"ink": 0}) == plain
    moved = Path(shutil.copytree(INK, tmp_path / "moved"))
    assert ids(opened({"path": str(moved)})) == ids(one), "neither its name nor its place"
    assert ids(opened({"path": str(INK), "name": "ink"}, mode="dynamic")) != ids(one), "the modes' bits differ"
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 4}))
    assert ids(opened({"path": str(moved)})) != ids(one)


def test_the_recipe_of_a_folder_holds_the_adapters_that_are_on_by_default() -> None:
    assert recipe_of_lora(configured().lora) == {}
    assert recipe_of_lora(configured({"path": str(INK), "strength": 0}).lora) == {}
    recipe = recipe_of_lora(configured({"path": str(INK), "name": "ink", "strength": 0.5}).lora)
    assert set(recipe) == {"lora.ink", "lora.mode"} and recipe["lora.ink"][1:] == [0.5, []]
    assert len(recipe["lora.ink"][0]) == 64
    with pytest.raises(UserError, match=r"lora 'nowhere': .*no such"):
        recipe_of_lora(configured({"path": "nowhere"}).lora)


@pytest.mark.parametrize("mode", ["merge", "dynamic"])
def test_requests_switch_adapters_and_give_the_bits_of_peft(mode: str, emoji: Path) -> None:
    pipeline = opened({"path": str(INK), "name": "ink"}, mode=mode)
    weights = {key: value.clone() for key, value in pipeline.stock.transformer.state_dict().items()}

    def ours(**lora: float) -> np.ndarray:
        return pipeline(Request("a cat", 1, CALL, lora, output_type="np"))[0][0]

    def stock(adapted: Any) -> np.ndarray:
        with torch.inference_mode():
            return adapted(["a cat"], **CALL, generator=torch.Generator().manual_seed(1), output_type="np")[0][0]

    oracle = tiny.load_stock(emoji)
    base = stock(oracle)
    adapted = PeftModel.from_pretrained(oracle.transformer, str(INK), autocast_adapter_dtype=False)
    if mode == "merge":
        adapted.merge_adapter()
    expected = stock(oracle)
    assert not np.array_equal(base, expected)
    assert np.array_equal(ours(), base)
    assert np.array_equal(ours(ink=1.0), expected)
    assert not np.array_equal(ours(ink=0.5), expected)
    assert np.array_equal(ours(ink=1.0), expected)
    assert np.array_equal(ours(), base)
    assert all(torch.equal(value, weights[key]) for key, value in pipeline.stock.transformer.state_dict().items())


def test_what_fails_in_one_component_is_taken_back_in_the_others() -> None:
    class Place:
        def __init__(self) -> None:
            self.now, self.fails = Edits(), False

        def set(self, edits: Edits) -> None:
            if self.fails:
                raise MemoryError("no room")
            self.now = edits

    opened_ = opened({"path": str(INK), "name": "ink"}).adapters
    places = {"transformer": Place(), "text_encoder": Place()}
    adapters = Adapters(configured({"path": str(INK), "name": "ink"}).lora, opened_._adapters, places)
    adapters.set({"ink": 0.5})
    before = places["transformer"].now
    places["text_encoder"].fails = True
    with pytest.raises(MemoryError):
        adapters.set({"ink": 1.0})
    assert places["transformer"].now == before and before.terms
    places["text_encoder"].fails = False
    adapters.set({})
    assert places["transformer"].now == Edits()
