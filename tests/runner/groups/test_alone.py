"""Requests whose calls change the model that they share are made one by one, and it is said why."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import FirstBlockCacheConfig

from runner.config import load_config
from runner.groups.alone import CHANGES, names_in_call
from runner.job.group_size import GroupSize
from runner.pipeline.open import open_pipeline
from runner.pipeline.pipeline import Pipeline
from runner.report.explain import table
from runner.request import Request
from runner.world import World
from tests import tiny

DISK = ["placement.default.rest=disk", "placement.vae.rest=device"]
SKIPS = ["components.guider.class=SkipLayerGuidance", "components.guider.skip_layer_guidance_stop=1.0",
         "components.guider.skip_layer_config={indices: [1, 2], fqn: transformer_blocks}"]  # fmt: skip


def opened(path: Path, *words: str) -> Pipeline:
    return open_pipeline(load_config(None, [f"model.path={path}", *DISK, *words]), World(0, 1, torch.device("cpu")))


def expect_one_by_one(pipeline: Pipeline, why: str) -> None:
    assert pipeline.why_alone is not None and why in pipeline.why_alone
    for asked in (4, "auto"):
        size = GroupSize(asked, pipeline)
        assert size.together == 1 and size.meter() is None and why in pipeline.group["reason"]
    assert "one by one" in table(pipeline) and why in table(pipeline)
    with pytest.raises(ValueError, match="cannot be made together"):
        pipeline.make_together([Request("a"), Request("b")], [None, None], lambda *_: None)


def test_a_guider_that_puts_hooks_on_blocks(tiny_root: Path) -> None:
    path = tiny.build("modular_qwenimage", tiny_root)
    expect_one_by_one(opened(path, *SKIPS), "SkipLayerGuidance")
    assert opened(path).why_alone is None, "its own guider changes nothing"


def test_a_cache_that_keeps_the_results_of_one_request(tiny_root: Path) -> None:
    pipeline = opened(tiny.build("flux", tiny_root), "placement.transformer.rest=device")
    assert pipeline.why_alone is None
    pipeline.stock.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    expect_one_by_one(pipeline, "transformer keeps state")
    pipeline.stock.transformer.disable_cache()
    assert pipeline.why_alone is None


@pytest.mark.parametrize("name", ["PixArtSigmaPAG", "StableDiffusion3PAG", "SkyReelsV2DiffusionForcing"])
def test_pipelines_that_change_their_models(name: str) -> None:
    assert CHANGES & names_in_call(getattr(diffusers, f"{name}Pipeline"))


def test_no_other_pipeline_calls_a_method_of_its_denoiser_that_may_change_it() -> None:
    """All that diffusers has: what their calls use of a denoiser, beside calling it."""
    reads = {"cache_context", "dtype", "config", "device", "parameters", "named_modules", "to", "_reset_stateful_cache"}
    used: dict[str, set[str]] = {}
    for name in dir(diffusers):
        cls = getattr(diffusers, name) if name.endswith("Pipeline") else None
        if isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline) and "transformer" in _parts(cls):
            tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(cls.__call__))))
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    owner = ast.unparse(node.func.value)
                    if re.fullmatch(r"self\.(transformer|prior|unet)\w*", owner):
                        used.setdefault(node.func.attr, set()).add(name)
    assert len(used) > 2 and used.keys() >= CHANGES
    assert used.keys() <= reads | CHANGES, {what: used[what] for what in used.keys() - reads - CHANGES}


def _parts(cls: type) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]
