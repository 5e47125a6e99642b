"""Whatever the bytes of an adapter and of its settings, they are read right or refused in one line, and soon."""

import json
import math
import re
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, HunyuanVideoPipeline, QwenImagePipeline, WanPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save
from torch import nn

from lora import Adapter, AdapterError, read_adapter
from tests.lora.lora_files import make_factors

FUZZ = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
MODEL = nn.ModuleDict({"to_q": nn.Linear(8, 6), "to_out": nn.ModuleList([nn.Linear(6, 5)])})
LAYERS = ("to_q", "to_out.0")
MODULES = {"transformer": MODEL, "text_encoder": nn.ModuleDict({"q_proj": nn.Linear(4, 4)})}
RANK = 2
GOOD = make_factors(MODEL, seed=1, rank=RANK, targets=".*")
SECONDS = 3


def read(file: Path, pipeline_class: Any = None) -> Adapter | None:
    """The adapter, or None where it is refused as it should be."""
    start = time.perf_counter()
    try:
        adapter = read_adapter(file, MODULES, pipeline_class=pipeline_class)
    except AdapterError as error:
        text = str(error)
        assert str(file) in text and len(text.splitlines()) == 1 and text.isprintable()
        adapter = None
    assert time.perf_counter() - start < SECONDS
    return adapter


def expect_applicable(adapter: Adapter) -> None:
    assert any(adapter.components.values())
    for component, changes in adapter.components.items():
        for name, change in changes.items():
            assert change.shape == tuple(MODULES[component].get_parameter(name).shape)
            assert change.down.isfinite().all() and change.up.isfinite().all()
            assert isinstance(float(change.scaling(1.0)), float)


# Settings

NAMES = [*LAYERS, "0", r"to_out\.0", "^to_q", "to.q", "^to_out.0$", "to_.*", "(a+)+$", "to_q|x", "[", "to_q.", ""]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NUMBER = st.integers(-1, 20) | st.floats() | st.just(10**400)
PATTERNS = st.dictionaries(st.sampled_from(NAMES), NUMBER, max_size=4)
RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "lora_alpha": st.integers(1, 9) | st.floats(-9, 9),
    "alpha_pattern": st.dictionaries(st.sampled_from(NAMES[:6]), st.floats(-9, 9), max_size=4),
    "rank_pattern": st.dictionaries(st.sampled_from(NAMES[:6]), st.just(RANK), max_size=3),
    "use_rslora": st.booleans(),
    "target_modules": st.lists(st.sampled_from(LAYERS)),
    "peft_type": st.just("LORA"),
    "bias": st.just("none"),
}
ANY = st.dictionaries(
    st.sampled_from(["r", *RIGHT, "init_lora_weights", "use_dora", "layers_to_transform", "x", "transformer.r"]),
    NUMBER | PATTERNS | JSON,
    max_size=2,
)
SETTINGS = st.builds(lambda right, odd: right | odd, st.fixed_dictionaries({"r": st.just(RANK)}, optional=RIGHT), ANY)


@pytest.fixture(scope="module")
def peft_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    (folder / "adapter_model.safetensors").write_bytes(save(GOOD))
    return folder


@settings(FUZZ, max_examples=250)
@given(config=SETTINGS | JSON)
def test_settings_are_followed_as_peft_does_or_refused(config: Any, peft_folder: Path) -> None:
    (peft_folder / "adapter_config.json").write_text(json.dumps(config))
    adapter = read(peft_folder)
    if adapter is None:
        return
    expect_applicable(adapter)
    found = adapter.components["transformer"]
    if all("." in key for key in config):  # of no component, or of others
        assert {change.alpha for change in found.values()} == {RANK}
        return
    theirs = LoraConfig(**{key: config[key] for key in ("lora_alpha", "use_rslora") if key in config})
    patterns = config.get("alpha_pattern") or {}
    for layer in LAYERS:
        alpha = patterns.get(get_pattern_key(list(patterns), layer), theirs.lora_alpha)
        assert found[f"{layer}.weight"].scaling(1.0) == 1.0 * alpha / (math.sqrt(RANK) if theirs.use_rslora else RANK)


@settings(FUZZ, max_examples=50)
@given(content=st.binary(max_size=60) | st.text(max_size=30).map(lambda text: text.encode("utf-16")))
def test_settings_of_any_bytes_are_no_fault(content: bytes, peft_folder: Path) -> None:
    (peft_folder / "adapter_config.json").write_bytes(content)
    read(peft_folder)


# Files

WORDS = re.findall(
    r"\S+",
    """transformer text_encoder text_encoder_2 unet base_model model diffusion_model lora_unet_ lora_te1_ lora_te3_
    lora_transformer_ double_blocks single_blocks blocks 0 1 99 to_q to_out q_proj attn img_attn_qkv processor
    query_norm.scale position_embedding default lora lora_A lora_B lora_down lora_up alpha weight bias diff diff_b
    lora_magnitude_vector lokr_w1 . ..""",
)
ODD_KEYS = st.lists(st.sampled_from([*WORDS, "", "\n"]), min_size=1, max_size=6).map(".".join) | st.text(max_size=12)
GOOD_KEYS = [f"transformer.{key}" for key in GOOD]
KOHYA = [f"lora_unet_double_blocks_0_img_attn_qkv.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")]
ORIGINAL = [f"transformer.double_blocks.0.img_attn_qkv.lora_{side}.weight" for side in "AB"]
KEYS = st.sampled_from([*GOOD_KEYS, *KOHYA, *ORIGINAL, "transformer.to_q.alpha", "to_q.alpha"]) | ODD_KEYS
DTYPES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "F8_E4M3": 1, "I8": 1, "BOOL": 1, "C64": 8, "F4": 1, "XX": 1}
SHAPES = st.sampled_from([[RANK, 8], [6, RANK], [RANK, 6], [5, RANK], [], [1], [0], [0, 8], [2**62, 0], [1] * 70])
CLASSES = st.sampled_from([None, FluxPipeline, WanPipeline, QwenImagePipeline, HunyuanVideoPipeline])


@st.composite
def tensors(draw: st.DrawFn) -> bytes:
    """A file whose header and data agree for the most part."""
    header: dict[str, Any] = {}
    offset = 0
    prefix = draw(st.sampled_from(["", "transformer.", "base_model.model."]))
    parts: dict[str, tuple[str, list[int]]] = {
        f"{prefix}{key}": (draw(st.sampled_from(["F32", "BF16"])), list(tensor.shape)) for key, tensor in GOOD.items()
    }
    for key in draw(st.lists(KEYS, max_size=draw(st.sampled_from([0, 1, 5])), unique=True)):
        parts[key] = (draw(st.sampled_from(["F32"] * 10 + list(DTYPES))), draw(SHAPES))
    for key in draw(st.lists(st.sampled_from(list(parts)), max_size=draw(st.sampled_from([0, 0, 0, 3])))):
        parts.pop(key, None)
    for key, (dtype, shape) in parts.items():
        size = DTYPES[dtype]
        for length in shape:
            size *= length
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    if draw(st.integers(0, 5)) == 0:
        header["__metadata__"] = draw(
            st.dictionaries(st.sampled_from(["lora_adapter_metadata", "format"]), st.text(max_size=9) | st.just("[1]"))
        )
    text = json.dumps(header).encode()
    fill = draw(st.sampled_from([b"\0", b"\x3c", b"\xff"]))
    return struct.pack("<Q", len(text) + draw(st.sampled_from([0] * 9 + [-1, 1, 2**40]))) + text + fill * offset


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file, some bytes of which were written over, or which was cut."""
    named = {f"transformer.{key}": tensor for key, tensor in GOOD.items()}
    content = bytearray(save(named | {f"transformer.{layer}.alpha": torch.tensor(3.0) for layer in LAYERS}))
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.sampled_from([len(content)] * 4 + [0, 7, 8, 100, len(content) - 1]))])


@settings(FUZZ, max_examples=350)
@given(content=tensors() | damaged() | st.binary(max_size=40), pipeline_class=CLASSES)
def test_files_of_any_bytes_are_read_whole_or_refused(
    content: bytes, pipeline_class: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    file.write_bytes(content)
    adapter = read(file, pipeline_class)
    if adapter is not None:
        expect_applicable(adapter)
        applied = sum(len(changes) for changes in adapter.components.values())
        assert applied * 2 == len([key for key in load_file(file) if not key.endswith("alpha")]), "every factor"
