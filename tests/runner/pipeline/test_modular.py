"""Modular pipelines: diffusers' own bits in every placement of one process, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from runner.calls.steps import Steps
from runner.components.directory import read_directory
from runner.components.modular import class_of
from runner.components.modular_index import INDEX
from runner.config import load_config
from runner.errors import UserError
from runner.inputs.arguments import arguments_of
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.request import Request
from runner.world import World
from tests import tiny
from tests.tiny.family import NUM_STEPS
from weights.overrides import Overrides

ALONE = World(0, 1, torch.device("cpu"))
SCOPES = ("component", "weights")


def opened(path: Path, *overrides: str) -> Pipeline:
    return open_pipeline(load_config(None, [f"model.path={path}", *overrides]), ALONE)


@pytest.fixture
def model(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny.build("modular_anima", tiny_root), tmp_path / "model"))


def change_index(model: Path, **changes: object) -> None:
    index = json.loads((model / INDEX).read_text()) | changes
    (model / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("name", tiny.MODULAR)
def test_every_placement_gives_the_bits_of_diffusers_own(name: str, tiny_root: Path) -> None:
    path, family = tiny.build(name, tiny_root), tiny.MODULAR[name]
    stock = tiny.load_modular(path)
    expected = [np.asarray(tiny.call_modular(stock, family, p, i)[0]) for i, p in enumerate(family.prompts[:2])]
    assert not np.array_equal(*expected)
    for rest in ("device", "host", "disk"):
        for scope in SCOPES:
            ours = opened(path, f"placement.default.rest={rest}", f"execution.leave_inference={scope}")
            for seed, prompt in enumerate(family.prompts[:2]):
                made = ours(Request(prompt, seed, family.call, output_type="np"))[0][0]
                assert np.array_equal(made, expected[seed]), f"{rest}, {scope}, request {seed}"
            assert {str(c.placement) for c in ours.components} == {f"replicate, {rest}"}
            ours.close()


@pytest.mark.parametrize("name", tiny.MODULAR)
def test_components_are_in_the_order_of_the_blocks_and_steps_are_counted(name: str, tiny_root: Path) -> None:
    family = tiny.MODULAR[name]
    ours = opened(tiny.build(name, tiny_root))
    stages = [component.stage for component in ours.components]
    assert stages == sorted(stages, key=["encode", "denoise", "decode"].index)
    assert {c.name for c in ours.components if c.stage == "denoise"} == set(family.denoisers)
    steps = Steps(ours.stock, Overrides())
    ours(Request(family.prompts[0], 0, family.call, output_type="np"))
    assert (steps.done, steps.total) == (NUM_STEPS, NUM_STEPS)


def test_an_argument_that_no_block_takes_is_refused_with_the_nearest(model: Path) -> None:
    with pytest.raises(UserError, match=r"num_steps is no argument of AnimaModularPipeline.*'num_inference_steps'"):
        opened(model).arguments.check({"num_steps": 3})


def test_what_a_call_lacks_and_what_would_be_ignored_depends_on_what_is_given(tiny_root: Path) -> None:
    arguments = arguments_of(read_directory(tiny.build("modular_qwenimage", tiny_root)).pipeline)
    assert arguments.required == {"prompt"} and arguments.takes["mask_image"].has_pictures
    refused = {
        (
            "strength",
        ): r"here: strength has no effect .*; it takes part in image2image, inpainting, controlnet_image2image",
        ("padding_mask_crop", "image"): r"padding_mask_crop has no effect .* it takes part in inpainting",
        ("mask_image",): r"QwenImageModularPipeline needs image for what is given; set job.call.image",
    }
    for given, message in refused.items():
        with pytest.raises(UserError, match=message):
            arguments.check_prompt("a fox", dict.fromkeys(given, 0.5), "here")
    for given in ((), ("image", "strength"), ("mask_image", "image", "strength"), ("control_image",)):
        arguments.check_prompt("a fox", dict.fromkeys(given, 0.5), "here")


def test_no_family_refuses_the_inputs_of_its_own_workflows() -> None:
    tried = 0
    for name in dir(diffusers):
        cls = getattr(diffusers, name, None) if name.endswith("ModularPipeline") else None
        if cls is None or not cls.default_blocks_name:
            continue
        made: Any = class_of(cls, getattr(diffusers, cls.default_blocks_name))
        for workflow, chosen in (made.blocks_class._workflow_map or {}).items():
            given = chosen[0] if isinstance(chosen, tuple) else chosen
            why = made.refused(given)
            assert why is None or "needs" in why, (name, workflow, why)
            tried += 1
    assert tried > 70


REFUSED = {
    "blocks of its own": (
        lambda model: (model / "modular_config.json").write_text("{}"),
        r"modular_config\.json brings blocks of the directory's own, and code of a model is never run",
    ),
    "an unknown class": (
        lambda model: change_index(model, _class_name="TomorrowModularPipeline"),
        r"'TomorrowModularPipeline' is no modular pipeline of diffusers",
    ),
    "a class that is no modular pipeline": (
        lambda model: change_index(model, _class_name="FluxPipeline"),
        r"'FluxPipeline' is no modular pipeline",
    ),
    "a component that is not there": (
        lambda model: shutil.rmtree(model / "vae"),
        r"no folder vae; .*says that vae is that of 'example/AnimaModularPipeline', and nothing is fetched",
    ),
    "a subfolder outside": (
        lambda model: change_index(
            model,
            vae=[
                None,
                None,
                {
                    "pretrained_model_name_or_path": "a/b",
                    "type_hint": ["diffusers", "AutoencoderKL"],
                    "subfolder": "../x",
                },
            ],
        ),
        r"the subfolder of vae is '\.\./x', outside of the directory",
    ),
    "a library that is none": (
        lambda model: change_index(
            model, vae=[None, None, {"pretrained_model_name_or_path": "a/b", "type_hint": ["os", "system"]}]
        ),
        r"vae is a os system, which no library here provides",
    ),
    "an entry that is none": (
        lambda model: change_index(model, vae=["diffusers", "AutoencoderKL"]),
        r"vae is .*; a component is \[library, class, where it is\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_what_and_where(case: str, model: Path) -> None:
    change, message = REFUSED[case]
    change(model)
    with pytest.raises(UserError, match=message):
        opened(model)
