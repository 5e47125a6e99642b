"""Whatever a directory's files hold: what stock makes of them, or one line for the user; soon, and in little memory.

Numbers are kept small. How long a library builds a model of a billion layers is not this project's to bound.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.components.directory import Directory, read_directory
from runner.components.files import check_files
from runner.components.identity import identity
from runner.components.reading import file_errors
from runner.components.source import Source
from runner.components.whole import from_pretrained
from runner.errors import UserError
from tests import tiny
from tests.memory import peak_anonymous_memory
from tests.runner.components.placements import place, state_of
from weights.checkpoint import CheckpointError
from weights.header import stored_tensors

fuzzed = partial(
    settings,
    derandomize=True,
    database=None,
    deadline=10_000,  # ms for one input, on a busy machine
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
WORDS = ["diffusers", "transformers", "stable_diffusion", "AutoencoderKL", "T5EncoderModel", "DDPMScheduler", "utils"]
WORDS += ["T5Tokenizer", "FluxPipeline", "AutoModel", "__path__", "../x", "a\0b", "\ud800", "float16", "x/y", ""]
SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats(width=16) | st.sampled_from(WORDS) | st.text(max_size=5)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
ENTRIES = st.lists(st.sampled_from(WORDS), min_size=2, max_size=2)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The libraries warn of most of these inputs."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def model(tiny_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.build("pixart", tiny_root), tmp_path / "m"))


@contextlib.contextmanager
def in_one_line(error: type[Exception] = UserError) -> Iterator[None]:
    """What is raised inside is one line for the user, or the test fails with it."""
    try:
        yield
    except error as told:
        assert "\n" not in str(told) and 20 < len(str(told)) < 1500, str(told)


def changed(document: dict[str, Any], changes: dict[str, Any], dropped: list[str]) -> str:
    return json.dumps({key: value for key, value in (document | changes).items() if key not in dropped})


# safetensors headers


def header(text: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


SIZES = st.integers(0, 40) | st.sampled_from([2**31, 2**63, 2**64, -1]) | JSON
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "I8", "BF16", "F4", "C64", "F8_E8M0", "X", 3]),
        "shape": st.lists(SIZES, max_size=3),
        "data_offsets": st.lists(SIZES, max_size=3),
    },
)
PLAIN = st.integers(0, 5).map(lambda n: {"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]})
HEADERS = st.dictionaries(st.sampled_from(["a", "b", "__metadata__", ""]), PLAIN | TENSORS | JSON, max_size=3) | JSON
FILES = st.one_of(
    st.binary(max_size=64),
    st.builds(header, st.binary(max_size=40), st.integers(0, 2**64 - 1) | st.none(), st.binary(max_size=20)),
    st.builds(header, HEADERS.map(lambda found: json.dumps(found).encode()), st.none(), st.binary(max_size=44)),
    st.builds(header, PLAIN.map(lambda found: json.dumps({"a": found}).encode()), st.none(), st.just(bytes(20))),
)


@given(content=FILES)
@fuzzed(max_examples=200)
def test_a_header_is_read_as_its_library_reads_it_or_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with in_one_line(CheckpointError):
        found = {tensor.key: tensor for tensor in stored_tensors(file)}
        with safe_open(file, framework="pt") as stock:
            assert sorted(found) == sorted(stock.keys())
            for key, tensor in found.items():
                assert tensor.offset + tensor.num_bytes <= len(content)
                raw = content[tensor.offset : tensor.offset + tensor.num_bytes]
                assert raw == bytes(stock.get_tensor(key).view(-1).view(torch.uint8).tolist())


def test_a_claimed_length_takes_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with peak_anonymous_memory() as peak:
        for exponent in range(64):
            file.write_bytes((2**exponent - 1).to_bytes(8, "little") + bytes(100))
            with in_one_line(CheckpointError):
                list(stored_tensors(file))
    assert peak() < 8 * 2**20


# model_index.json


@given(
    changes=st.dictionaries(
        st.sampled_from(["_class_name", "vae", "tokenizer", "scheduler", "transformer", "text_encoder", "more"]),
        JSON | ENTRIES | st.sampled_from(["PixArtSigmaPipeline", "FluxPipeline", "WanPipeline"]),
        max_size=3,
    ),
    dropped=st.lists(st.sampled_from(["_class_name", "vae", "tokenizer", "more"]), max_size=1),
)
@fuzzed(max_examples=100)
def test_an_index_is_understood_or_refused(model: Path, changes: dict[str, Any], dropped: list[str]) -> None:
    index = model / "model_index.json"
    original = index.read_text()
    try:
        index.write_text(changed(json.loads(original), changes, dropped))
        with in_one_line():
            directory = read_directory(model)
            assert isinstance(directory, Directory) and issubclass(directory.pipeline, object)
            assert all(isinstance(value, str) for value in identity(directory, "cpu").values())
    finally:
        index.write_text(original)


@given(content=st.binary(max_size=60) | JSON.map(lambda found: json.dumps(found).encode()))
@fuzzed(max_examples=60)
def test_any_bytes_for_an_index_are_refused(model: Path, content: bytes) -> None:
    (model / "model_index.json").write_bytes(content)
    with pytest.raises(UserError) as raised, in_one_line(CheckpointError):
        read_directory(model)
    assert "\n" not in str(raised.value)


# A component's own files


def restored(file: Path, content: str | bytes) -> contextlib.AbstractContextManager[None]:
    """The file with other content, for a while."""

    @contextlib.contextmanager
    def swap() -> Iterator[None]:
        original = file.read_bytes()
        file.write_bytes(content.encode(errors="surrogatepass") if isinstance(content, str) else content)
        try:
            yield
        finally:
            file.write_bytes(original)

    return swap()


@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder"])
@given(data=st.data())
@fuzzed(max_examples=20)
def test_a_models_config_gives_what_stock_gives_or_is_refused(model: Path, name: str, data: st.DataObject) -> None:
    file = model / name / "config.json"
    document = json.loads(file.read_text())
    keys = st.sampled_from([*sorted(document), "transformers_weights", "auto_map", "attn_implementation", "norm_type"])
    changes = data.draw(st.dictionaries(keys, JSON, min_size=1, max_size=2))
    dropped = data.draw(st.lists(st.sampled_from(sorted(document)), max_size=1))
    cls: Any = read_directory(model).classes[name]
    default = torch.get_default_dtype()
    with restored(file, changed(document, changes, dropped)), in_one_line(), file_errors():
        check_files(cls, file.parent)
        found = state_of(place(cls, model / name, "disk")[0])
        stock: nn.Module = cls.from_pretrained(model / name, torch_dtype=torch.float32)
        wanted = stock.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    assert torch.get_default_dtype() is default


@pytest.mark.parametrize(
    "name", ["scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json"]
)
@given(data=st.data())
@fuzzed(max_examples=25)
def test_a_part_without_weights_is_built_or_refused(model: Path, name: str, data: st.DataObject) -> None:
    file = model / name
    document = json.loads(file.read_text())
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(document)), JSON, min_size=1, max_size=2))
    dropped = data.draw(st.lists(st.sampled_from(sorted(document)), max_size=1))
    cls = read_directory(model).classes[file.parent.name]
    with restored(file, changed(document, changes, dropped)), in_one_line(), file_errors():
        check_files(cls, file.parent)
        assert isinstance(from_pretrained(Source(file.parent.name, cls, file.parent)), cls)
