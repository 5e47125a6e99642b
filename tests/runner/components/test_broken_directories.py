"""A directory that cannot be opened is refused in one line that names the file and the fix, before weights load."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch

from runner.components.directory import read_directory
from runner.components.reading import reading, words_of
from runner.errors import UserError
from tests import tiny

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
HTML = "<!DOCTYPE html>\n<html><head><title>403</title></head><body>Access denied</body></html>\n"
WEIGHTS = Path("transformer", "diffusion_pytorch_model.safetensors")
TEXT_WEIGHTS = Path("text_encoder_3", "model.safetensors")

Break = Callable[[Path], object]


def index(**changes: Any) -> Break:
    """Entries of model_index.json; ... takes one out."""

    def apply(root: Path) -> None:
        found = json.loads((root / "model_index.json").read_text()) | changes
        kept = {name: value for name, value in found.items() if value is not ...}
        (root / "model_index.json").write_text(json.dumps(kept))

    return apply


def content(file: str | Path, what: str | bytes) -> Break:
    return lambda root: (root / file).write_bytes(what if isinstance(what, bytes) else what.encode())


def gone(file: str | Path) -> Break:
    return lambda root: shutil.rmtree(root / file) if (root / file).is_dir() else (root / file).unlink()


def dangling(file: str | Path) -> Break:
    """As in a hub's cache of which the blobs were cleared."""

    def apply(root: Path) -> None:
        gone(file)(root)
        (root / file).symlink_to("../../blobs/0a1b2c")

    return apply


def folder(file: str | Path) -> Break:
    return lambda root: (gone(file)(root), (root / file).mkdir())


def header(length: int, text: bytes = b"") -> Break:
    return content(WEIGHTS, length.to_bytes(8, "little") + text)


def pickled(root: Path) -> None:
    torch.save({"a": torch.zeros(1)}, root / "transformer" / "diffusion_pytorch_model.bin")
    (root / WEIGHTS).unlink()


BROKEN: dict[str, tuple[Break, str]] = {
    # model_index.json
    "no index": (gone("model_index.json"), r"m is not a diffusers directory: it holds no model_index\.json"),
    "index is a list": (content("model_index.json", "[1]"), r"model_index\.json holds a list, not an object"),
    "index is no JSON": (content("model_index.json", "{'a': 1}"), r"model_index\.json is not JSON \(Expecting"),
    "index is empty": (content("model_index.json", ""), r"model_index\.json is not JSON"),
    "index is UTF-16": (content("model_index.json", '{"a": 1}'.encode("utf-16")), r"is not UTF-8 text \(invalid start"),
    "index is nested": (
        content("model_index.json", "[" * 100_000),
        r"model_index\.json is not JSON.*nested too deeply",
    ),
    "index is a pointer": (content("model_index.json", LFS), r"model_index\.json is a git-LFS pointer.*git lfs pull"),
    "index is a web page": (content("model_index.json", HTML), r"model_index\.json is not JSON.*it is a web page"),
    "index is a folder": (folder("model_index.json"), r"model_index\.json cannot be read: Is a directory"),
    "index dangles": (
        dangling("model_index.json"),
        r"model_index\.json is a link to .*blobs/0a1b2c, which is not there",
    ),
    "no class": (index(_class_name=...), r"None is no pipeline of diffusers 0\.42"),
    "a class of null": (index(_class_name=None), r"None is no pipeline of diffusers"),
    "a class that is a number": (index(_class_name=7), r"7 is no pipeline of diffusers"),
    "an unknown class": (
        index(_class_name="NopePipeline"),
        r"'NopePipeline' is no pipeline of diffusers .*written by 0\.42",
    ),
    "a class that is no pipeline": (index(_class_name="AutoencoderKL"), r"'AutoencoderKL' is no pipeline of diffusers"),
    "the class of all pipelines": (index(_class_name="DiffusionPipeline"), r"'DiffusionPipeline' is no pipeline"),
    "a class without its package": (index(_class_name="OnnxStableDiffusionPipeline"), r"requires the onnxruntime"),
    "a pipeline of its own": (index(_class_name=["pipeline", "Mine"]), r"of the directory's own.*code.*never run"),
    "a component is missing": (
        index(vae=...),
        r"model_index\.json lists no vae, which a StableDiffusion3Pipeline needs",
    ),
    "a component is nested": (
        index(vae=[["diffusers", "AutoencoderKL"]]),
        r"vae is .*a component is \[library, class\]",
    ),
    "a component is a number": (index(vae=3), r"vae is 3; a component is \[library, class\]"),
    "a component is half null": (index(vae=["diffusers", None]), r"vae is .*a component is \[library, class\]"),
    "a component of an unknown library": (
        index(vae=["os", "PathLike"]),
        r"vae is a os PathLike, which no library here",
    ),
    "a component of an unknown class": (
        index(vae=["diffusers", "VAE9"]),
        r"VAE9, which is not installed: diffusers has no",
    ),
    "a component that is no class": (index(vae=["diffusers", "utils"]), r"which is no model, scheduler, tokenizer"),
    "a component of any class": (
        index(vae=["diffusers", "AutoModel"]),
        r"AutoModel, which is no model, scheduler, token",
    ),
    "a component is a pipeline": (index(vae=["diffusers", "FluxPipeline"]), r"FluxPipeline, which is no model"),
    "a component without its package": (index(tokenizer=["diffusers", "FlaxAutoencoderKL"]), r"FlaxAutoencoderKL"),
    # component folders and their configurations
    "no transformer": (gone("transformer"), r"m has no folder transformer, which model_index\.json lists"),
    "no tokenizer": (gone("tokenizer_3"), r"m has no folder tokenizer_3, which model_index\.json lists"),
    "no scheduler": (gone("scheduler"), r"m has no folder scheduler, which model_index\.json lists"),
    "a folder dangles": (dangling("vae"), r"vae is a link to .*blobs/0a1b2c, which is not there"),
    "an empty tokenizer": (gone("tokenizer_3/tokenizer.json"), r"tokenizer_3 holds no vocabulary for a T5Tokenizer"),
    "a tokenizer that is a pointer": (
        content("tokenizer/tokenizer.json", LFS),
        r"tokenizer\.json is a git-LFS pointer",
    ),
    "tokenizer config is a list": (
        content("tokenizer/tokenizer_config.json", "[]"),
        r"tokenizer_config\.json holds a list",
    ),
    "scheduler config is a list": (
        content("scheduler/scheduler_config.json", "[]"),
        r"scheduler_config\.json holds a list",
    ),
    "no scheduler config": (gone("scheduler/scheduler_config.json"), r"scheduler_config\.json is not there"),
    "config is a list": (content("transformer/config.json", "[]"), r"transformer/config\.json holds a list"),
    "config is null": (content("text_encoder/config.json", "null"), r"text_encoder/config\.json holds a null"),
    "config is cut": (content("text_encoder/config.json", '{"a":'), r"text_encoder/config\.json is not JSON"),
    "config is not UTF-8": (content("vae/config.json", b'{"a": "\xff"}'), r"vae/config\.json is not UTF-8"),
    "no config": (gone("vae/config.json"), r"vae/config\.json is not there"),
    "an adapter in a component": (
        content("text_encoder/adapter_config.json", "{}"),
        r"text_encoder/adapter_config\.json: transformers would put this adapter on the weights; .*lora\.adapters",
    ),
    # weights
    "weights are a pointer": (
        content(WEIGHTS, LFS),
        r"safetensors is a git-LFS pointer, not the weights: run `git lfs",
    ),
    "weights are a web page": (content(WEIGHTS, HTML), r"safetensors is a web page, not the weights: download"),
    "weights are a pickle": (content(WEIGHTS, b"PK\x03\x04" + bytes(99)), r"is a pickle, which can run code"),
    "weights are pickled": (pickled, r"holds no diffusion_pytorch_model\.safetensors.*\.bin is a pickle"),
    "weights are empty": (content(WEIGHTS, b""), r"safetensors is empty: the download or copy was cut off"),
    "weights are a few bytes": (content(WEIGHTS, b"abc"), r"is damaged or cut short"),
    "weights are text": (content(TEXT_WEIGHTS, "Entry not found"), r"text_encoder_3/model\.safetensors is damaged"),
    "weights are cut": (lambda root: os.truncate(root / WEIGHTS, 5000), r"is damaged or cut short"),
    "weights are a folder": (folder(WEIGHTS), r"safetensors cannot be read: it is a folder"),
    "weights dangle": (dangling(WEIGHTS), r"safetensors is a link to .*blobs/0a1b2c, which is not there"),
    "weights are gone": (gone(WEIGHTS), r"transformer holds no diffusion_pytorch_model\.safetensors.*incomplete"),
    "weights are a variant": (
        lambda root: (root / WEIGHTS).rename(root / "transformer" / "diffusion_pytorch_model.fp16.safetensors"),
        r"it has diffusion_pytorch_model\.fp16\.safetensors, which is not what its library reads: say model\.v",
    ),
    "the longest header": (header(2**64 - 1), r"is damaged or cut short"),
    "a header of no JSON": (header(9, b"not JSON!"), r"is damaged or cut short"),
    "a header of a list": (header(2, b"[]"), r"is damaged or cut short"),
    "a header of nonsense": (header(14, b'{"a": {"b": 1}'), r"is damaged or cut short"),
    "a header that claims more": (
        header(62, b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}} '),
        r"is damaged or cut short",
    ),
}


@pytest.fixture
def model(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny.build("sd3", tiny_root), tmp_path / "m"))


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_broken_is_named_with_the_fix_before_anything_is_loaded(model: Path, broken: str) -> None:
    apply, message = BROKEN[broken]
    apply(model)
    with pytest.raises(UserError, match=message) as raised:
        read_directory(model)
    told = str(raised.value)
    assert "\n" not in told and len(told) < 600
    assert str(model) in told
    assert not any(word in told for word in ("huggingface", "internet", "connect", "offline"))


@pytest.mark.parametrize(
    "name", ["model_index.json", "diffusion_pytorch_model.safetensors", "tokenizer.json", "config.json"]
)
def test_a_file_that_may_not_be_read_is_named(model: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """root, who runs tests, may read everything: the system's answer is given in its place."""
    opened = Path.open

    def denied(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=rf"{name} cannot be read: Permission denied; let this user read it \(chmod\)"):
        read_directory(model)


def test_what_stock_ignores_or_accepts_is_no_mistake(model: Path) -> None:
    index(extra=["diffusers", "AutoencoderKL"], other=None, number=3, image_encoder=...)(model)
    shutil.move(model / "scheduler" / "scheduler_config.json", model)
    shutil.rmtree(model / "scheduler")
    stock = diffusers.StableDiffusion3Pipeline.from_pretrained(model)
    directory = read_directory(model)
    assert {name: type(part) for name, part in stock.components.items() if part is not None} == directory.classes
    assert directory.settings == {"feature_extractor": None}, "what is not listed is left to the constructor"
    assert directory.folder("scheduler") == model


@pytest.mark.parametrize("null", [None, [None, None]])
def test_a_component_of_null_is_none(model: Path, null: object) -> None:
    index(text_encoder_3=null, tokenizer_3=null)(model)
    shutil.rmtree(model / "text_encoder_3")
    directory = read_directory(model)
    assert {"text_encoder_3", "tokenizer_3"} <= directory.settings.keys()
    assert "text_encoder_3" not in directory.classes


def test_classes_are_found_by_the_names_they_had_before(model: Path) -> None:
    index(tokenizer_3=["transformers", "T5TokenizerFast"])(model)
    assert read_directory(model).classes["tokenizer_3"].__name__ == "T5Tokenizer"


# Packages


@pytest.mark.parametrize(
    ("name", "package"),
    [("WanImageToVideoPipeline", "ftfy"), ("SkyReelsV2Pipeline", "ftfy"), ("OmniGenPipeline", "torchvision")],
)
def test_a_package_that_would_be_used_unasked_is_named(name: str, package: str) -> None:
    from runner.components.needs import refuse_missing

    cls = getattr(diffusers, name)
    question = f"is_{package}_available"
    module: Any = sys.modules[cls.__module__]
    there, asked = getattr(module, question), pytest.MonkeyPatch()
    with asked.context() as patch:
        patch.setattr(module, question, lambda: False)
        with pytest.raises(UserError, match=f"{name} uses {package}, which is not installed: pip install {package}"):
            refuse_missing(cls)
        patch.setattr(module, question, lambda: True)
        refuse_missing(cls)
    assert getattr(module, question) is there


@pytest.mark.parametrize("name", ["PixArtSigmaPipeline", "WanPipeline", "SanaPipeline", "FluxPipeline", "LTXPipeline"])
def test_a_package_that_the_code_does_without_is_not_asked_for(name: str) -> None:
    from runner.components.needs import refuse_missing

    refuse_missing(getattr(diffusers, name))


# The border between a library and this project


def library_module(source: str) -> ModuleType:
    module = ModuleType("some_library")
    exec(compile(source, "some_library.py", "exec"), vars(module))
    return module


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("raise KeyError('hidden_size')", "KeyError: 'hidden_size'"),
        ("raise OSError('No config.\\n Check your internet connection. See https://huggingface.co/x.')", "No config."),
        ("import no_such_package", "No module named 'no_such_package'; pip install no_such_package"),
        ("ftfy.fix_text('')", "NameError: name 'ftfy' is not defined; pip install ftfy"),
        ("raise ValueError", "its files are not what the library expects"),
        ("raise RecursionError('maximum recursion depth exceeded')", "maximum recursion depth exceeded"),
        ("raise type('PanicException', (BaseException,), {})('index out of range')", "PanicException: index out of"),
    ],
)
def test_what_a_library_raises_is_told_in_its_own_words_in_one_line(line: str, told: str) -> None:
    library = library_module(f"def read():\n    {line}")
    with pytest.raises(UserError) as raised, reading("m/vae cannot be loaded"):
        library.read()
    assert str(raised.value).startswith(f"m/vae cannot be loaded: {told}")
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is not None


def test_what_the_machine_lacks_and_what_is_our_bug_is_no_mistake_of_the_user() -> None:
    library = library_module("def read(file):\n    raise MemoryError\ndef call(back):\n    back()")
    with pytest.raises(MemoryError), reading("m"):
        library.read("file")
    ours = vars(sys.modules[words_of.__module__])
    exec("def bug(call):\n    call(lambda: [][0])\ndef misuse(read):\n    read()", ours)
    try:
        with pytest.raises(IndexError), reading("m"):
            ours["bug"](library.call)
        with pytest.raises(TypeError, match="missing 1 required positional argument"), reading("m"):
            ours["misuse"](library.read)
    finally:
        del ours["bug"], ours["misuse"]


def test_a_long_message_is_cut() -> None:
    assert len(words_of(ValueError("x " * 10_000))) < 500
