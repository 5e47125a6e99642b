"""What components.<name> changes: checked before weights are loaded, part of the identity where it has an effect."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, FluxPipeline, UniPCMultistepScheduler

from runner.components.directory import directory_of
from runner.components.identity import identity
from runner.components.whole import from_pretrained, load_whole
from runner.config import load_config, to_yaml
from runner.errors import UserError
from runner.output.recipe import differences
from tests import tiny

T, V, S = "components.transformer", "components.vae", "components.scheduler"


@pytest.fixture
def wan(tiny_root: Path) -> Path:
    return tiny.build("wan", tiny_root)


def of(path: Path, *words: str) -> dict[str, Any]:
    config = load_config(None, [f"model.path={path}", *words])
    return identity(directory_of(config), "cpu", config.model.dtype.value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (f"{S}.flow_shft=3", r"scheduler\.flow_shft: a UniPCMultistepScheduler has no such setting; .*'flow_shift'"),
        (f"{S}.dtype=float32", r"scheduler\.dtype: a UniPCMultistepScheduler has no such setting"),
        (
            f"{S}.class=FlowMatchEulerDiscreteScheduler",
            r"does not take the configuration of a UniPC.*DPMSolverMultistep",
        ),
        (
            f"{S}.solver_type=x",
            r"components\.scheduler: a UniPCMultistepScheduler does not take these settings: x is not",
        ),
        (f"{V}.tilin=true", r"components\.vae\.tilin: a AutoencoderKLWan has no such setting; the nearest is 'tiling'"),
        (f"{V}.tiling=3", r"components\.vae\.tiling is 3; it must be true, false, or a mapping"),
        (
            f"{V}.tiling={{tile_height: 3}}",
            r"tiling\.tile_height: a AutoencoderKLWan has no such.*'tile_sample_min_hei",
        ),
        (f"{T}.tiling=true", r"components\.transformer\.tiling: a WanTransformer3DModel has no tiling"),
        (f"{T}.attention=flush", r"no attention backend 'flush'; installed are .*native"),
        (f"{T}.attention=sage", r"components\.transformer\.attention: .*Please install `sageattention"),
        (f"{T}.attention=flash_hub", r"flash_hub is code that is fetched from a hub"),
        ("components.text_encoder.attention=flex", r"a UMT5EncoderModel does not choose its attention by diffusers"),
        ("components.tokenizer.dtype=float16", r"components\.tokenizer\.dtype: a T5Tokenizer\w* has no such setting"),
        (f"{V}.variant=fp16", r"vae holds no diffusion_pytorch_model\.fp16\.safetensors"),
        ("model.variant=fp16", r"model\.variant: no component of .*wan has weight files of the variant 'fp16'"),
        ("components.transformer_2.dtype=float16", r"the model has no transformer_2, and a WanPipeline"),
    ],
)
def test_what_a_component_does_not_have_is_refused(wan: Path, word: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        of(wan, word)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("word", "changed"),
    [
        (f"{S}.flow_shift=3.0", []),  # as its file says
        (f"{S}.flow_shift=5", ["components.scheduler.flow_shift: unset -> 5"]),
        (f"{S}.settings={{flow_shift: 5}}", ["components.scheduler.flow_shift: unset -> 5"]),
        (f"{S}.solver_order=2", []),  # as its class says
        (f"{S}.class=UniPCMultistepScheduler", []),
        (
            f"{S}.class=DPMSolverMultistepScheduler",
            ["components.scheduler.class: unset -> DPMSolverMultistepScheduler"],
        ),
        (f"{V}.tiling=false", []),
        (f"{V}.tiling=true", ["components.vae.tiling: unset -> {}"]),
        (f"{V}.slicing=true", ["components.vae.slicing: unset -> {}"]),
        (f"{V}.dtype=float32", []),
        (f"{V}.dtype=bfloat16", ["components.vae.dtype: unset -> bfloat16"]),
        (f"{T}.attention=native", []),
        (f"{T}.attention=_native_math", ["components.transformer.attention: unset -> _native_math"]),
    ],
)
def test_what_has_an_effect_is_another_identity(wan: Path, word: str, changed: list[str]) -> None:
    assert differences(of(wan), of(wan, word)) == changed


def test_the_settings_survive_being_printed_and_read_again(tmp_path: Path) -> None:
    words = [f"{S}.flow_shift=5", f"{S}.class=X", f"{V}.tiling={{tile_sample_min_height: 64}}", f"{V}.dtype=float16"]
    config = load_config(None, words)
    assert config.components["scheduler"].settings == {"flow_shift": 5, "class": "X"}
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "c.yaml", []) == config
    (tmp_path / "short.yaml").write_text("components: {scheduler: {flow_shift: 5, class: X}}")
    short = load_config(tmp_path / "short.yaml", [f"{S}.flow_shift=7"])
    assert short.components["scheduler"].settings == {"flow_shift": 7, "class": "X"}


def test_a_variant_is_read_where_there_is_one_as_from_pretrained_does(tiny_root: Path, tmp_path: Path) -> None:
    """A folder of which some components have files of the variant, and others have not."""
    root = Path(shutil.copytree(tiny.build("flux", tiny_root), tmp_path / "m"))
    other = AutoencoderKL.from_pretrained(root / "vae")
    with torch.no_grad():
        other.decoder.conv_out.bias += 1
    other.save_pretrained(root / "vae", variant="fp16")
    stock: Any = FluxPipeline.from_pretrained(root, variant="fp16")
    directory = directory_of(load_config(None, [f"model.path={root}", "model.variant=fp16"]))
    assert {name for name, source in directory.sources.items() if source.variant} == {"vae"}
    for name in directory.modules:
        found = load_whole(directory.sources[name], torch.float32).state_dict()
        expected = getattr(stock, name).state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    assert differences(of(root), of(root, "model.variant=fp16"))[0].startswith("vae: ")
    assert of(root, "model.variant=fp16") == of(root, f"{V}.variant=fp16")


def test_an_exchanged_scheduler_is_that_of_from_config(wan: Path) -> None:
    config = load_config(None, [f"model.path={wan}", f"{S}.class=DPMSolverMultistepScheduler", f"{S}.flow_shift=7"])
    source = directory_of(config).sources["scheduler"]
    stored = UniPCMultistepScheduler.from_pretrained(wan / "scheduler")
    stock = DPMSolverMultistepScheduler.from_config(stored.config, flow_shift=7)
    found = from_pretrained(source)
    assert type(found) is DPMSolverMultistepScheduler and found.config == stock.config
