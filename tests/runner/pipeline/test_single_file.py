"""A component's weights in one file, as others publish them, give the bits of stock's from_single_file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from runner.components.directory import directory_of
from runner.components.identity import identity
from runner.config import load_config
from runner.errors import UserError
from runner.request import Request
from tests import tiny
from tests.distributed.placed import opened
from tests.ranks import World, on_ranks

FAMILY = tiny.FAMILIES["wan"]
T = "components.transformer.path"


# What diffusers calls the parts of a Wan transformer, and what those called them who trained it.
PUBLISHED = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "attn1.": "self_attn.",
    "attn2.": "cross_attn.",
    ".to_out.0.": ".o.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    "proj_out": "head.head",
    ".ffn.net.0.proj.": ".ffn.0.",
    ".ffn.net.2.": ".ffn.2.",
    ".norm2.": ".norm3.",
}


def originals(path: Path) -> dict[str, torch.Tensor]:
    """The transformer's weights by the names that Wan was published with."""
    theirs = {}
    for name, tensor in load_file(path / "transformer" / "diffusion_pytorch_model.safetensors").items():
        key = "head.modulation" if name == "scale_shift_table" else name.replace(".scale_shift_table", ".modulation")
        for ours, published in PUBLISHED.items():
            key = key.replace(ours, published)
        theirs[f"model.diffusion_model.{key}"] = tensor
    return theirs


@pytest.fixture
def wan(tiny_root: Path) -> Path:
    return tiny.build("wan", tiny_root)


@pytest.fixture
def published(wan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("single") / "wan.safetensors"
    save_file({key: (tensor * 1.5).contiguous() for key, tensor in originals(wan).items()}, file)
    return file


@pytest.fixture
def renamed(wan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By diffusers' own names."""
    file = tmp_path_factory.mktemp("single") / "mine.safetensors"
    ours = load_file(wan / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file({key: tensor * 1.5 for key, tensor in ours.items()}, file)
    return file


def stock_of(wan: Path, file: Path) -> torch.Tensor:
    transformer = WanTransformer3DModel.from_single_file(str(file), config=str(wan / "transformer"))
    stock: Any = WanPipeline.from_pretrained(wan, transformer=transformer)
    for component in stock.components.values():
        if isinstance(component, torch.nn.Module):
            for tensor in (*component.parameters(), *component.buffers()):
                tensor.data = tensor.data.clone()
    return torch.as_tensor(tiny.call_stock(stock, FAMILY, FAMILY.prompts[0], 5)[0])


@pytest.mark.parametrize("placed", ["share=replicate", "rest=host", "share=shard"])
@on_ranks(2)
def test_converted_weights_give_the_stock_bits(world: World, wan: Path, published: Path, placed: str) -> None:
    pipeline = opened(world, wan, f"{T}={published}", f"placement.transformer.{placed}")
    assert pipeline.loadings["transformer"].how.startswith("whole, by its library")
    made = torch.as_tensor(pipeline(Request(FAMILY.prompts[0], 5, FAMILY.call, output_type="np"))[0][0])
    assert torch.equal(made, stock_of(wan, published))


@pytest.mark.parametrize("placed", ["share=replicate", "rest=host", "rest=disk", "share=shard"])
@on_ranks(1)
def test_a_file_by_diffusers_own_names_is_read_like_a_folder(
    world: World, wan: Path, renamed: Path, placed: str
) -> None:
    pipeline = opened(world, wan, f"{T}={renamed}", f"placement.transformer.{placed}")
    assert "whole" not in pipeline.loadings["transformer"].how
    made = torch.as_tensor(pipeline(Request(FAMILY.prompts[0], 5, FAMILY.call, output_type="np"))[0][0])
    assert torch.equal(made, stock_of(wan, renamed))


@on_ranks(1)
def test_converted_weights_cannot_wait_on_disk(world: World, wan: Path, published: Path) -> None:
    with pytest.raises(
        UserError, match=r"placement\.transformer: rest=disk reads the files as they are, but .*rest=host"
    ):
        opened(world, wan, f"{T}={published}", "placement.transformer.rest=disk")


def test_what_cannot_be_read_from_one_file_is_refused(wan: Path, published: Path, tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(UserError) as raised:
            directory_of(load_config(None, [f"model.path={wan}", *words]))
        return str(raised.value)

    assert "no UMT5EncoderModel from a single file" in refused(f"components.text_encoder.path={published}")
    assert "is not there" in refused(f"{T}={tmp_path / 'x.safetensors'}")
    assert "read from .safetensors only" in refused(f"{T}={wan / 'model_index.json'}")
    assert f"components.transformer.path={published}" in refused(f"model.path={published}")
    scaled = tmp_path / "scaled.safetensors"
    save_file(load_file(published) | {"head.head.scale_weight": torch.ones(1)}, scaled)
    assert "quantised weights with scales (head.head.scale_weight)" in refused(f"{T}={scaled}")


def test_the_file_counts_by_its_content(wan: Path, published: Path, tmp_path: Path) -> None:
    def of(*words: str) -> dict[str, Any]:
        return identity(directory_of(load_config(None, [f"model.path={wan}", *words])), "cpu")

    before = of(f"{T}={published}")
    assert before != of()
    moved = tmp_path / "another.safetensors"
    moved.write_bytes(published.read_bytes())
    assert of(f"{T}={moved}") == before
    save_file({key: tensor + 1 for key, tensor in load_file(published).items()}, moved)
    assert of(f"{T}={moved}") != before
