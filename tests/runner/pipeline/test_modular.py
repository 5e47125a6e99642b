"""Modular pipelines: diffusers' own bits in every placement of one process, and what is refused."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.calls.steps import Steps
from runner.components.directory import directory_of, read_directory
from runner.components.identity import identity
from runner.components.modular import class_of
from runner.components.modular_index import INDEX
from runner.config import load_config
from runner.errors import UserError
from runner.inputs.arguments import arguments_of
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.progress import Progress
from runner.request import Request
from runner.world import World
from tests import tiny
from tests.resuming import Bench
from tests.tiny.family import NUM_STEPS
from weights.overrides import Overrides

ALONE = World(0, 1, torch.device("cpu"))
SCOPES = ("component", "weights")
FAMILIES = [pytest.param(one, marks=pytest.mark.slow) if "wan" in one else one for one in tiny.MODULAR]


def opened(path: Path, *overrides: str) -> Pipeline:
    return open_pipeline(load_config(None, [f"model.path={path}", *overrides]), ALONE)


def made_by(pipeline: Pipeline, request: Request) -> np.ndarray:
    return np.asarray(pipeline(request)[0][0])


@pytest.fixture
def model(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny.build("modular_anima", tiny_root), tmp_path / "model"))


def change_index(model: Path, **changes: object) -> None:
    index = json.loads((model / INDEX).read_text()) | changes
    (model / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_placement_gives_the_bits_of_diffusers_own(name: str, tiny_root: Path) -> None:
    path, family = tiny.build(name, tiny_root), tiny.MODULAR[name]
    stock = tiny.load_modular(path)
    expected = [np.asarray(tiny.call_modular(stock, family, p, i)[0]) for i, p in enumerate(family.prompts[:2])]
    assert not np.array_equal(*expected)
    for rest in ("device", "host", "disk"):
        for scope in SCOPES:
            ours = opened(path, f"placement.default.rest={rest}", f"execution.leave_inference={scope}")
            for seed, prompt in enumerate(family.prompts[:2]):
                made = made_by(ours, Request(prompt, seed, family.call, output_type="np"))
                assert np.array_equal(made, expected[seed]), f"{rest}, {scope}, request {seed}"
            assert {str(c.placement) for c in ours.components} == {f"replicate, {rest}"}
            ours.close()


@pytest.mark.parametrize("name", FAMILIES)
def test_components_are_in_the_order_of_the_blocks_and_steps_are_counted(name: str, tiny_root: Path) -> None:
    family = tiny.MODULAR[name]
    ours = opened(tiny.build(name, tiny_root))
    stages = [component.stage for component in ours.components]
    assert stages == sorted(stages, key=["encode", "denoise", "decode"].index)
    assert {c.name for c in ours.components if c.stage == "denoise"} == set(family.denoisers)
    steps = Steps(ours.stock, Overrides(), Progress())
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
        made: Any = class_of(cls, getattr(diffusers, cls.default_blocks_name)())
        for workflow, chosen in (made.blocks_of_class._workflow_map or {}).items():
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
        r"'TomorrowModularPipeline' is no modular pipeline of diffusers .*0\.42\.1 was tried",
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


# What is set of a guider, and the guider that diffusers would be given. The second class puts hooks on the blocks.
GUIDERS: dict[str, tuple[list[str], Any]] = {
    "a setting": (["guidance_scale=7"], lambda stock: stock.guider.new(guidance_scale=7.0)),
    "off": (["enabled=false"], lambda stock: stock.guider.new(enabled=False)),
    "another class": (
        ["class=AdaptiveProjectedGuidance", "eta=0.5"],
        lambda stock: diffusers.AdaptiveProjectedGuidance(guidance_scale=4.0, eta=0.5),
    ),
    "a class that skips blocks": (
        [
            "class=SkipLayerGuidance",
            "skip_layer_config={indices: [1, 2], fqn: transformer_blocks}",
            "skip_layer_guidance_stop=1.0",
        ],
        lambda stock: diffusers.SkipLayerGuidance(
            guidance_scale=4.0,
            skip_layer_config=diffusers.LayerSkipConfig(indices=[1, 2], fqn="transformer_blocks"),
            skip_layer_guidance_stop=1.0,
        ),
    ),
}


@pytest.mark.parametrize("case", GUIDERS)
def test_what_is_set_of_a_guider_gives_the_bits_of_diffusers_with_that_guider(case: str, tiny_root: Path) -> None:
    words, guider = GUIDERS[case]
    path, family = tiny.build("modular_qwenimage", tiny_root), tiny.MODULAR["modular_qwenimage"]
    stock = tiny.load_modular(path)
    plain = np.asarray(tiny.call_modular(stock, family, family.prompts[0], 0)[0])
    stock.update_components(guider=guider(stock))
    expected = np.asarray(tiny.call_modular(stock, family, family.prompts[0], 0)[0])
    assert not np.array_equal(expected, plain)
    settings = [f"components.guider.{word}" for word in words]
    for placed in ([], ["placement.default.rest=disk", "execution.leave_inference=weights"]):
        ours = opened(path, *settings, *placed)
        assert np.array_equal(made_by(ours, Request(family.prompts[0], 0, family.call, output_type="np")), expected)
        ours.close()


def test_a_guiders_settings_are_in_the_identity_and_those_that_change_nothing_are_not(model: Path) -> None:
    def id_of(*words: str) -> dict[str, Any]:
        return identity(directory_of(load_config(None, [f"model.path={model}", *words])), "cpu")

    assert id_of() == id_of("components.guider.guidance_scale=4.0")
    assert id_of() != id_of("components.guider.guidance_scale=7")
    with pytest.raises(
        UserError, match=r"guider\.scale: a ClassifierFreeGuidance has no such setting.*'guidance_scale'"
    ):
        id_of("components.guider.scale=7")
    with pytest.raises(UserError, match=r"guider\.class: 'FluxPipeline' is no guider"):
        id_of("components.guider.class=FluxPipeline")


def test_a_workflow_leaves_out_what_the_others_need(model: Path) -> None:
    whole, one = opened(model), opened(model, "model.workflow=text2image")
    family = tiny.MODULAR["modular_anima"]
    request = Request(family.prompts[0], 0, family.call, output_type="np")
    assert np.array_equal(made_by(whole, request), made_by(one, request))
    assert "image" in whole.arguments.takes and "image" not in one.arguments.takes
    with pytest.raises(UserError, match=r"no workflow 'inpainting'; it has text2image, img2img"):
        opened(model, "model.workflow=inpainting")


def test_classes_that_an_index_leaves_to_the_libraries_are_those_that_they_choose(model: Path) -> None:
    named = opened(model)
    index = json.loads((model / INDEX).read_text())
    hints = {
        "tokenizer": ["transformers", "AutoTokenizer"],
        "text_encoder": ["transformers", "AutoModel"],
        "transformer": ["diffusers", "AutoModel"],
        "vae": [None, None],
    }
    for name, hint in hints.items():
        index[name][:2] = [None, None]  # as before they were loaded
        index[name][2]["type_hint"] = hint
    change_index(model, **index)
    family = tiny.MODULAR["modular_anima"]
    request = Request(family.prompts[0], 0, family.call, output_type="np")
    chosen = opened(model, "placement.default.rest=disk")
    for name in hints:
        assert type(getattr(chosen.stock, name)) is type(getattr(named.stock, name))
    assert np.array_equal(made_by(chosen, request), made_by(named, request))


def test_the_variant_that_an_index_names_is_read_and_not_the_plain_file_beside(model: Path) -> None:
    plain = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(plain)
    save_file({key: 2 * value for key, value in weights.items()}, plain, metadata={"format": "pt"})
    save_file(weights, plain.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    index = json.loads((model / INDEX).read_text())
    index["transformer"][2]["variant"] = "fp16"
    change_index(model, **index)
    family = tiny.MODULAR["modular_anima"]
    expected = tiny.call_modular(tiny.load_modular(model), family, family.prompts[0], 0)[0]
    request = Request(family.prompts[0], 0, family.call, output_type="np")
    for rest in ("device", "disk"):
        assert np.array_equal(made_by(opened(model, f"placement.default.rest={rest}"), request), expected)


def test_a_component_that_is_not_there_comes_by_its_path(model: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "vae"
    shutil.move(model / "vae", elsewhere)
    with pytest.raises(
        UserError, match=r"nothing is fetched: copy it there, or give its folder as components\.vae\.path"
    ):
        opened(model)
    family = tiny.MODULAR["modular_anima"]
    ours = opened(model, f"components.vae.path={elsewhere}")
    assert np.isfinite(made_by(ours, Request(family.prompts[0], 0, family.call, output_type="np"))).all()


def test_a_request_goes_on_from_its_log_after_each_call(tiny_root: Path, tmp_path: Path) -> None:
    path, family = tiny.build("modular_qwenimage", tiny_root), tiny.MODULAR["modular_qwenimage"]
    request = Request(family.prompts[0], 0, family.call, output_type="np")
    expected = np.asarray(tiny.call_modular(tiny.load_modular(path), family, family.prompts[0], 0)[0])
    bench = Bench(opened(path), tmp_path)
    made, calls = bench.make(request, "whole")
    assert np.array_equal(made, expected) and calls == bench.records("whole") == 2 * NUM_STEPS
    for kept in range(calls + 1):
        made, computed = bench.make(request, bench.cut("whole", kept))
        assert np.array_equal(made, expected) and computed == calls - kept
    assert bench.pipeline.replay is not None and bench.pipeline.replay.kept.calls_replayed > 0
    bench.pipeline.close()


@pytest.mark.parametrize(
    ("guider", "words"),
    [
        (
            functools.partial(diffusers.AdaptiveProjectedGuidance, adaptive_projected_guidance_momentum=-0.5),
            ["class=AdaptiveProjectedGuidance", "adaptive_projected_guidance_momentum=-0.5"],
        ),
        (functools.partial(diffusers.ClassifierFreeGuidance, stop=0.6), ["stop=0.6"]),
    ],
    ids=["momentum", "guidance that stops before the end"],
)
def test_what_one_request_leaves_in_a_guider_is_not_the_next_ones_start(
    guider: Any, words: list[str], tiny_root: Path
) -> None:
    """diffusers' own second call with the same guider is another picture, or an error: it has the last one's step."""
    path, family = tiny.build("modular_qwenimage", tiny_root), tiny.MODULAR["modular_qwenimage"]
    ours, stock = opened(path, *(f"components.guider.{word}" for word in words)), tiny.load_modular(path)
    for seed, prompt in enumerate(family.prompts[:2]):
        stock.update_components(guider=guider(guidance_scale=4.0))
        expected = tiny.call_modular(stock, family, prompt, seed)[0]
        assert np.array_equal(made_by(ours, Request(prompt, seed, family.call, output_type="np")), expected)
    ours.close()


def test_requests_of_a_group_have_guiders_and_schedulers_of_their_own(tiny_root: Path) -> None:
    """Momentum is state of the guider: shared, it would go from one request to the next."""
    path, family = tiny.build("modular_qwenimage", tiny_root), tiny.MODULAR["modular_qwenimage"]
    guider = ["class=AdaptiveProjectedGuidance", "adaptive_projected_guidance_momentum=-0.5"]
    ours = opened(path, "placement.default.rest=disk", *(f"components.guider.{word}" for word in guider))
    requests = [Request(prompt, seed, family.call, output_type="np") for seed, prompt in enumerate(family.prompts)]
    made: dict[int, np.ndarray] = {}
    ours.make_together(
        requests, [None] * 3, lambda index, outcome, _: made.__setitem__(index, np.asarray(outcome()[0][0]))
    )
    stock = tiny.load_modular(path)
    for index, prompt in enumerate(family.prompts):
        stock.update_components(
            guider=diffusers.AdaptiveProjectedGuidance(guidance_scale=4.0, adaptive_projected_guidance_momentum=-0.5)
        )
        assert np.array_equal(made[index], tiny.call_modular(stock, family, prompt, index)[0])
    ours.close()
