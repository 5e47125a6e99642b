"""A model's identity changes with what decides pixels, and with nothing else; what changed is told by its key."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.distributed as dist
import transformers
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from runner.components.directory import directory_of, read_directory
from runner.components.identity import agreed_identity, identity
from runner.config import OnChange, load_config
from runner.errors import UserError
from runner.output.folder import Folder
from runner.output.recipe import choose_folder, differences, keep_recipe, recipe_of
from runner.world import World
from tests import ranks, tiny
from tests.ranks import on_ranks

Change = Callable[[Path], object]
OPENED: list[str] | None = None  # the files that Python opened, while it is a list


@pytest.fixture
def model(tiny_root: Path, tmp_path: Path) -> Path:
    """With an encoder that has a tower for pictures, and more than one of what could be weights."""
    return Path(shutil.copytree(tiny.build("qwenimage", tiny_root), tmp_path / "m"))


def of(root: Path, device: str = "cpu") -> dict[str, Any]:
    return identity(read_directory(root), device)


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [line.partition(":")[0] for line in differences(before, after)]


def text(file: str, content: str) -> Change:
    def apply(root: Path) -> None:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(content)

    return apply


def setting(file: str, **settings: Any) -> Change:
    return lambda root: text(file, json.dumps(json.loads((root / file).read_text()) | settings))(root)


def other_values(file: Path) -> None:
    save_file({key: tensor + 1 for key, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def relinked(root: Path) -> None:
    """The folder becomes a link to another one of the same names and sizes."""
    (root / "transformer").rename(root / "elsewhere")
    (root / "transformer").symlink_to("elsewhere", target_is_directory=True)
    other_values(root / "elsewhere" / "diffusion_pytorch_model.safetensors")


DECIDES: dict[str, tuple[Change, list[str]]] = {
    "another pipeline": (setting("model_index.json", _class_name="QwenImageImg2ImgPipeline"), ["pipeline"]),
    "a component's config": (setting("transformer/config.json", axes_dims_rope=[8, 2, 2]), ["transformer"]),
    "a scheduler's config": (setting("scheduler/scheduler_config.json", shift=2.0), ["scheduler"]),
    "weights": (lambda root: other_values(root / "vae" / "diffusion_pytorch_model.safetensors"), ["vae"]),
    "weights behind a link": (relinked, ["transformer"]),
    "a generation config": (text("text_encoder/generation_config.json", "{}"), ["text_encoder"]),
    "a chat template": (text("tokenizer/chat_template.jinja", "{{ messages }}"), ["tokenizer"]),
    "more chat templates": (text("tokenizer/additional_chat_templates/short.jinja", "x"), ["tokenizer"]),
    "a tokenizer's vocabulary": (text("tokenizer/vocab.json", "{}"), ["tokenizer"]),
    "a tokenizer's merges": (text("tokenizer/merges.txt", "#version"), ["tokenizer"]),
    "a tokenizer's model": (text("tokenizer/spiece.model", "x"), ["tokenizer"]),
    "added tokens": (text("tokenizer/added_tokens.json", "{}"), ["tokenizer"]),
}
DECIDES_NOTHING: dict[str, Change] = {
    "a README": text("README.md", "x"),
    "a README of a component": text("transformer/README.md", "x"),
    "a licence": text("tokenizer/LICENSE.txt", "x"),
    "a list of packages": text("requirements.txt", "x"),
    "git's own": text(".gitattributes", "x"),
    "a hub's own": text(".cache/huggingface/transformer/config.json.metadata", "x"),
    "a folder that is no component": text("old/config.json", "{}"),
    "another variant": text("transformer/diffusion_pytorch_model.fp16.safetensors", "x"),
    "another library's weights": text("transformer/model.safetensors", "x"),
    "a pickle": text("text_encoder/pytorch_model.bin", "x"),
    "notes beside a config": text("vae/notes.json", "[]"),
    "what the pipeline does not take": setting("model_index.json", extra=["diffusers", "AutoencoderKL"], note=1),
    "who wrote it": setting("model_index.json", _diffusers_version="0.0.1", _name_or_path="x"),
    "a link to the same files": lambda root: ((root / "vae").rename(root / "v"), (root / "vae").symlink_to("v")),
    "times": lambda root: [os.utime(file) for file in root.rglob("*")],
}


@pytest.mark.parametrize("what", DECIDES)
def test_what_decides_pixels_changes_its_key(model: Path, what: str) -> None:
    apply, keys = DECIDES[what]
    before = of(model)
    apply(model)
    assert changed(before, of(model)) == keys


@pytest.mark.parametrize("what", DECIDES_NOTHING)
def test_what_decides_nothing_changes_nothing(model: Path, what: str) -> None:
    before = of(model)
    DECIDES_NOTHING[what](model)
    assert of(model) == before


def test_where_it_lies_is_no_part_of_it(model: Path) -> None:
    before = of(model)
    assert of(model.rename(model.with_name("n"))) == before


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and OPENED is not None and isinstance(arguments[0], str):
        OPENED.append(arguments[0])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_file_that_stock_opens_counts(family: str, tiny_root: Path, tmp_path: Path) -> None:
    """Told by Python's audit of opened files. Files that Rust opens (weights) are not among them."""
    global OPENED
    root = Path(shutil.copytree(tiny.build(family, tiny_root), tmp_path / "m"))
    if not hasattr(sys, "_opened_files_are_watched"):
        sys.addaudithook(_watch)
        sys._opened_files_are_watched = True  # type: ignore[attr-defined]
    OPENED = []
    try:
        DiffusionPipeline.from_pretrained(root)
        opened = {Path(name) for name in OPENED if name.startswith(str(root))}
    finally:
        OPENED = None
    assert {file.name for file in opened} >= {"model_index.json", "config.json", "scheduler_config.json"}
    for file in sorted(opened - {root / "model_index.json"}):
        before = of(root)
        original = file.read_bytes()
        file.write_bytes(original + b" ")
        assert changed(before, of(root)) == [file.parent.name], file
        file.write_bytes(original)


@pytest.mark.parametrize("library", [torch, diffusers, transformers])
def test_a_release_of_a_library_counts_and_its_local_tag_does_not(
    model: Path, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = of(model)
    release = str(library.__version__).partition("+")[0]
    monkeypatch.setattr(library, "__version__", f"{release}+cu130")
    assert of(model) == before
    monkeypatch.setattr(library, "__version__", "9.9.9")
    assert differences(before, of(model)) == [f"library.{library.__name__}: {release} -> 9.9.9"]


@pytest.mark.parametrize(
    ("family", "package"), [("pixart", "ftfy"), ("pixart", "bs4"), ("wan", "ftfy"), ("flux", None), ("dit", None)]
)
def test_a_package_counts_for_the_pipelines_that_ask_for_it(
    tiny_root: Path, family: str, package: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny.build(family, tiny_root)
    before = of(root)
    asked = {key.removeprefix("library.") for key in before} & {"ftfy", "bs4", "torchvision", "invisible_watermark"}
    assert (package in asked) if package else not asked
    if package:
        module = sys.modules[read_directory(root).pipeline.__module__]
        there = getattr(module, f"is_{package}_available")()
        monkeypatch.setattr(module, f"is_{package}_available", lambda: not there)
        words = ("installed", "absent") if there else ("absent", "installed")
        assert differences(before, of(root)) == [f"library.{package}: {words[0]} -> {words[1]}"]


def test_the_type_of_the_device_counts(model: Path) -> None:
    assert differences(of(model), of(model, "cuda")) == ["device: cpu -> cuda"]


def test_another_release_is_another_recipe_and_refused_by_its_key(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe() -> dict[str, Any]:
        alone, config = World(0, 1, torch.device("cpu")), load_config(None, [f"model.path={model}"])
        return recipe_of(config, agreed_identity(directory_of(config), config, alone))

    keep_recipe(Folder(tmp_path), recipe())
    assert choose_folder(iter([Folder(tmp_path)]), recipe(), OnChange.refuse) == Folder(tmp_path)
    monkeypatch.setattr(torch, "__version__", "2.99.1")
    with pytest.raises(UserError, match=r"another recipe \(model\.library\.torch: 2\.\d+\.\d+ -> 2\.99\.1\)"):
        choose_folder(iter([Folder(tmp_path)]), recipe(), OnChange.refuse)


@on_ranks(2)
def test_ranks_have_the_same_or_are_told_what_differs(world: ranks.World) -> None:
    root = world.tmp_path / "m"
    if world.rank == 0:
        shutil.copytree(tiny.build("pixart", world.tmp_path), root)
    dist.barrier()
    ours = World(world.rank, world.size, world.device, dist.new_group(backend="gloo"))
    alone = World(0, 1, world.device)

    def agreed_on(model: Path, together: World) -> dict[str, Any]:
        config = load_config(None, [f"model.path={model}"])
        return agreed_identity(directory_of(config), config, together)

    agreed = agreed_on(root, ours)
    assert agreed == agreed_on(root, alone), "the same for any number of ranks"
    mine = world.tmp_path / f"rank{world.rank}"
    shutil.copytree(root, mine)
    assert agreed_on(mine, ours) == agreed
    if world.rank == 1:
        other_values(mine / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match=r"model\.vae is not the same on all ranks: .* on rank 0, .* on rank 1; give"):
        agreed_on(mine, ours)


def test_settings_of_the_pipeline_count(tiny_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny.build("wan22", tiny_root), tmp_path / "m"))
    before = of(root)
    setting("model_index.json", boundary_ratio=0.5)(root)
    assert changed(before, of(root)) == ["settings"]
