"""What opening a directory refuses, and what the opened pipeline guarantees."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.config import load_config
from runner.errors import UserError
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline, WrittenOutsideInferenceMode
from runner.request import Request
from runner.world import World
from tests import tiny

ALONE = World(0, 1, torch.device("cpu"))


def opened(path: Path, *overrides: str) -> Pipeline:
    return open_pipeline(load_config(None, [f"model.path={path}", *overrides]), ALONE)


def _write(state: torch.Tensor) -> None:
    state.mul_(1)


@pytest.fixture
def model(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny.build("pixart", tiny_root), tmp_path / "model"))


def weights(model: Path) -> Path:
    return next((model / "transformer").glob("*.safetensors"))


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no directory"):
        opened(tmp_path / "nowhere")


def test_not_a_diffusers_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model_index\.json"):
        opened(tmp_path)


def test_missing_weight_file(model: Path) -> None:
    weights(model).unlink()
    with pytest.raises(UserError, match=r"transformer holds no diffusion_pytorch_model\.safetensors"):
        opened(model)


def test_truncated_weight_file(model: Path) -> None:
    file = weights(model)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cut short"):
        opened(model)


def test_weight_of_the_wrong_shape(model: Path) -> None:
    tensors = load_file(weights(model))
    tensors["proj_out.bias"] = torch.zeros(3)
    save_file(tensors, weights(model), metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"proj_out\.bias"):
        opened(model)


def test_a_weight_that_is_missing_from_its_file(model: Path) -> None:
    tensors = load_file(weights(model))
    del tensors["proj_out.bias"]
    save_file(tensors, weights(model), metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing keys.*proj_out\.bias"):
        opened(model)


def test_pickled_weights_are_refused_unread(model: Path) -> None:
    weights(model).unlink()
    (model / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04not read")
    with pytest.raises(UserError, match="pickled"):
        opened(model)


def test_an_index_that_points_outside_its_folder(model: Path) -> None:
    index = model / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"proj_out.bias": "../../elsewhere.safetensors"}}))
    with pytest.raises(UserError, match=r"names .*elsewhere\.safetensors', which is no file beside it"):
        opened(model)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["placement.vae.share=shard", "placement.vae.rest=disk", "placement.vae.prefetch=2"], "has no prefetch"),
        (["placement.vae.prefetch=2"], "has no prefetch .=2.; share=shard rest=device or share=shard rest=host has"),
        (["placement.vae.share=shard", "placement.vae.window=3"], "has no window"),
    ],
)
def test_a_placement_that_cannot_be_is_refused_with_one_that_can(
    model: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        opened(model, *overrides)


def test_a_placement_for_a_component_that_does_not_exist(model: Path) -> None:
    with pytest.raises(UserError, match=r"no such component.*transformer"):
        opened(model, "placement.unet.share=replicate")


def test_refuses_to_open_in_inference_mode(model: Path) -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference"):
        opened(model)


def test_arguments_are_checked_against_the_pipelines_signature(model: Path) -> None:
    pipeline = opened(model)
    with pytest.raises(UserError, match="nearest is 'guidance_scale'"):
        pipeline.arguments.check({"guidence_scale": 3})
    with pytest.raises(UserError, match=r"job\.seed"):
        pipeline.arguments.check({"generator": 3})


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_weights_are_aligned_and_not_inference_tensors(name: str, tiny_root: Path) -> None:
    for component in opened(tiny.build(name, tiny_root)).components:
        for tensor in (*component.module.parameters(), *component.module.buffers()):
            assert not tensor.is_inference()
            assert tensor.numel() == 0 or tensor.data_ptr() % 64 == 0


def test_components_run_inside_inference_mode_and_stages_follow_the_declared_order(model: Path) -> None:
    pipeline = opened(model)
    family = tiny.FAMILIES["pixart"]
    seen = {}
    for component in pipeline.components:
        component.module.register_forward_pre_hook(
            lambda *_, name=component.name: seen.__setitem__(name, torch.is_inference_mode_enabled())
        )
    pipeline(Request(family.prompts[0], 0, family.call, output_type="np"))
    assert seen["text_encoder"] and seen["transformer"]
    assert [c.stage for c in pipeline.components] == ["encode", "denoise", "decode"]
    assert pipeline.recorder.calls("denoise") == 3
    assert pipeline.recorder.calls("decode") == 1
    assert not torch.is_inference_mode_enabled()
    pipeline.close()
    assert "to" not in vars(pipeline.stock.transformer), "the boundaries come off"


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_latents_and_pixels_are_the_stock_pipelines_bits(name: str, tiny_root: Path) -> None:
    family = tiny.FAMILIES[name]
    path = tiny.build(name, tiny_root)
    ours, stock = opened(path), tiny.load_stock(path)
    for output_type in ("latent", "np"):
        for seed, prompt in enumerate(family.prompts[:2]):
            expected = torch.as_tensor(tiny.call_stock(stock, family, prompt, seed, output_type=output_type)[0])
            text = prompt[0] if isinstance(prompt, list) else prompt
            made = ours(Request(text, seed, family.call, output_type=output_type))[0][0]
            assert torch.equal(torch.as_tensor(made), expected)


def test_state_of_the_pipelines_own_that_a_component_writes_in_place_names_the_scope_that_works(
    tiny_root: Path,
) -> None:
    """Such as a cache of keys and values that the pipeline makes, in inference mode, and the transformer fills."""
    path, family = tiny.build("flux", tiny_root), tiny.FAMILIES["flux"]
    request = Request("a cat", 0, family.call, output_type="np")
    for scope in ("weights", "component"):
        pipeline = opened(path, "placement.transformer.rest=disk", f"execution.leave_inference={scope}")
        pipeline.stock.transformer.register_forward_pre_hook(
            lambda _, args, kwargs: _write(kwargs["hidden_states"]), with_kwargs=True
        )
        if scope == "weights":
            pipeline(request)
        else:
            with pytest.raises(WrittenOutsideInferenceMode, match=r"transformer writes.*leave_inference=weights"):
                pipeline(request)
        pipeline.close()
