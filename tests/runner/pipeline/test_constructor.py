"""What a pipeline's constructor does by itself: components that it makes, and modules that it gives to a second one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiTPipeline, LongCatAudioDiTPipeline, ZImageControlNetPipeline
from safetensors.torch import save_file
from torch import nn

from runner.components.directory import read_directory
from runner.components.needs import made_by_constructor, refuse_unmakeable
from runner.components.resolver import ExecutionMode
from runner.config import load_config
from runner.errors import UserError
from runner.pipeline.open import open_pipeline
from runner.request import Request
from tests import tiny
from tests.census.cases_zimage import with_controlnet
from tests.distributed.placed import joined, opened
from tests.ranks import World, on_ranks

COSMOS = [
    one for one in dir(diffusers) if one.startswith("Cosmos") and one.endswith("Pipeline") and "Modular" not in one
]


@pytest.mark.parametrize("name", COSMOS)
def test_a_component_whose_package_is_missing_is_named_before_anything_is_loaded(name: str) -> None:
    cls = getattr(diffusers, name)
    if "safety_checker" not in cls._optional_components:  # made of parts that have one
        return
    with pytest.raises(UserError, match=rf"{name} makes its safety_checker itself: .*pip install cosmos_guardrail"):
        refuse_unmakeable(cls, {"safety_checker": None}, ())
    refuse_unmakeable(cls, {}, ("safety_checker",))


def test_a_setting_of_the_constructor_says_whether_it_makes_a_component() -> None:
    cls = diffusers.Cosmos3OmniPipeline
    refuse_unmakeable(cls, {"safety_checker": None, "enable_safety_checker": False}, ())
    assert set(made_by_constructor(cls, {"safety_checker": None}, ())) == {"safety_checker"}
    assert set(made_by_constructor(LongCatAudioDiTPipeline, {}, ())) == {"scheduler"}
    assert made_by_constructor(diffusers.QwenImageLayeredPipeline, {}, ()) == {}


class Checked(DiTPipeline):
    """With a model of its own making, as Cosmos' pipelines have where their checker's package is installed."""

    def __init__(self, transformer: Any, vae: Any, scheduler: Any, id2label: Any = None, checker: Any = None) -> None:
        super().__init__(transformer, vae, scheduler, id2label)
        self.register_modules(checker=nn.Linear(4, 4, dtype=torch.float64))

    _optional_components = ["checker"]  # noqa: RUF012


@on_ranks(1)
def test_a_module_that_the_constructor_makes_is_a_component(world: World, tiny_root: Path) -> None:
    path = tiny.build("dit", tiny_root)
    config = load_config(None, [f"model.path={path}", "placement.default.rest=disk"])
    pipeline = open_pipeline(config, joined(world), replace(read_directory(path), pipeline=Checked))
    made = next(component for component in pipeline.components if component.name == "checker")
    assert pipeline.loadings["checker"].how == "made by Checked itself"
    assert {p.dtype for p in made.module.parameters()} == {torch.float64}, "the constructor's own"
    assert {p.device for p in made.module.parameters()} == {world.device}
    assert pipeline.decisions["checker"].mode is ExecutionMode.INFERENCE


@pytest.fixture
def zimage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zimage")
    ZImageControlNetPipeline(**with_controlnet(control_in_dim=4)).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["placement.default.share=shard"],
        ["placement.default.rest=disk"],
        ["placement.transformer.rest=host"],
        ["placement.controlnet.rest=host"],
        ["placement.controlnet.share=shard"],
    ],
    ids=" ".join,
)
@on_ranks(2)
def test_what_a_component_lends_has_the_stock_bits_wherever_both_are(
    world: World, zimage: Path, words: list[str]
) -> None:
    call: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 2, "max_sequence_length": 24}
    call["control_image"] = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    pipeline = opened(world, zimage, *words)
    made = torch.as_tensor(pipeline(Request("a fox", 1, call, output_type="np"))[0][0])
    stock: Any = tiny.load_stock(zimage)
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(1)
        expected = stock(prompt=["a fox"], **call, generator=generator, output_type="np").images[0]
    assert torch.equal(made, torch.as_tensor(expected))


@on_ranks(1)
def test_an_adapter_of_what_is_lent_has_to_reach_both(world: World, zimage: Path) -> None:
    file = world.tmp_path / "a.safetensors"
    layer = "transformer.noise_refiner.0.attention.to_q"
    factors = {f"{layer}.lora_A.weight": torch.ones(2, 24), f"{layer}.lora_B.weight": torch.ones(24, 2)}
    save_file(factors, file)
    words = [f"lora=[{{path: {file}}}]"]
    opened(world, zimage, *words)
    with pytest.raises(
        UserError, match=r"lora 'a' changes transformer\.noise_refiner.*the controlnet has too, as a copy"
    ):
        opened(world, zimage, *words, "placement.transformer.rest=host")
