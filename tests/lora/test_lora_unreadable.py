"""What is no adapter, or not in all its parts, is refused in one line that names the file, at once."""

import json
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora import AdapterError, read_adapter
from runner.config import load_config
from runner.errors import UserError
from runner.pipeline.open import open_pipeline
from tests import tiny
from tests.lora.lora_files import make_factors
from tests.lora.test_lora_offloaded import ALONE

AS_ROOT = os.geteuid() == 0


def model() -> nn.Module:
    return nn.ModuleDict({"to_q": nn.Linear(8, 6), "to_out": nn.ModuleList([nn.Linear(6, 5)])})


def refused(path: Path) -> str:
    """The one line that says why, given within a second."""
    start = time.perf_counter()
    with pytest.raises(AdapterError) as caught:
        read_adapter(path, {"transformer": model()})
    assert time.perf_counter() - start < 1
    text = str(caught.value)
    assert text.startswith(str(path)) and len(text.splitlines()) == 1, text
    return text


HTML = b"<!DOCTYPE html><html><body>404</body></html>"
FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty (0 bytes); download it again"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "git lfs pull"),
    "HTML": (HTML, "web page"),
    "a pickle of torch": (b"PK\x03\x04" + bytes(64), "pickle"),
    "an old pickle": (b"\x80\x02}q\x00." + bytes(64), "pickle"),
    "the longest header": (struct.pack("<Q", 2**64 - 1) + b"{}", "no safetensors file"),
    "a long header": (struct.pack("<Q", 99_000_000) + b"{}", "no safetensors file"),
    "a line break": (b"\n", "no safetensors file"),
    "no JSON": (struct.pack("<Q", 4) + b"{{{{", "no safetensors file"),
    "a size that overflows": (
        b"\x4b" + bytes(7) + b'{"a":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,4]}}  ' + bytes(4),
        "no safetensors file",
    ),
    "no tensors": (struct.pack("<Q", 2) + b"{}", "holds no tensors"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_no_adapter_is_named_with_the_fix(what: str, tmp_path: Path) -> None:
    content, message = FILES[what]
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    tracemalloc.start()
    assert message in refused(file)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(make_factors(model(), seed=1, targets=".*"), file)
    file.write_bytes(file.read_bytes()[:-1])
    assert "no safetensors file, or was cut short" in refused(file)


def _folder(path: Path) -> None:
    path.mkdir()


def _of_folders(path: Path) -> None:
    (path / "adapter.safetensors").mkdir(parents=True)


def _dangling(path: Path) -> None:
    path.symlink_to("gone.safetensors")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_folder, "is a folder that holds no .safetensors file"),
        (_of_folders, "is a folder, not a file"),
        (_dangling, "is a link to gone.safetensors, which is not there"),
        (_loop, "is a link to"),
        (_pipe, "is no file"),
        (_nothing, "no such file or folder"),
    ],
)
def test_what_is_no_file_is_named(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    make(path)
    assert message in refused(path)


def test_a_name_that_is_too_long_is_no_fault(tmp_path: Path) -> None:
    assert "name too long" in refused(tmp_path / ("x" * 300)).lower()


@pytest.mark.skipif(AS_ROOT, reason="root may read everything")
@pytest.mark.parametrize("locked", ["file", "folder"])
def test_a_file_that_may_not_be_read_is_named(locked: str, tmp_path: Path) -> None:
    file = tmp_path / "folder" / "x.safetensors"
    file.parent.mkdir()
    save_file(make_factors(model(), seed=1, targets=".*"), file)
    where = file if locked == "file" else file.parent
    where.chmod(0)
    try:
        assert "Permission denied" in refused(file)
    finally:
        where.chmod(0o755)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")], ids=lambda e: e.strerror
)
@pytest.mark.parametrize("call", ["is_dir", "open"])
def test_what_the_system_does_not_let_us_read_is_named(
    call: str, error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is for who is not root."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(HTML)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Path, call, fail)
    assert f"not readable ({error.strerror})" in refused(file)


# Settings


def adapter(folder: Path, settings: bytes | dict[str, Any] | list[Any], **extra: torch.Tensor) -> Path:
    file = folder / "adapter_model.safetensors"
    save_file({**make_factors(model(), seed=1, rank=2, targets=".*"), **extra}, file)
    content = settings if isinstance(settings, bytes) else json.dumps(settings).encode()
    (folder / "adapter_config.json").write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (b"\xff\xfe{}", "not JSON in UTF-8 (UnicodeDecodeError"),
        (b"{", "not JSON in UTF-8 (JSONDecodeError"),
        (b"[" * 100_000, "not JSON in UTF-8 (RecursionError"),
        (["r", 2], "are list, not an object"),
        (b"7", "are int, not an object"),
        ({"r": 2, "lora_alpha": "x"}, "lora_alpha='x', which is no finite number"),
        ({"r": 2, "lora_alpha": None}, "lora_alpha=None, which is no finite number"),
        ({"r": 2, "lora_alpha": True}, "lora_alpha=True, which is no finite number"),
        ({"r": 2, "lora_alpha": float("nan")}, "lora_alpha=nan, which is no finite number"),
        ({"r": 2, "lora_alpha": float("-inf")}, "lora_alpha=-inf, which is no finite number"),
        ({"r": 2, "lora_alpha": 10**400}, "which is no finite number"),
        ({"r": "2"}, "r='2', which is no rank"),
        ({"r": 2.0}, "r=2.0, which is no rank"),
        ({"r": 0}, "r=0, which is no rank"),
        ({"lora_alpha": 8}, "rank 2 where the settings say 8"),
        ({"r": 2, "use_rslora": "yes"}, "use_rslora='yes', which is neither true nor false"),
        ({"r": 2, "target_modules": 7}, "target_modules=7, which is no list of names"),
        ({"r": 2, "target_modules": [7]}, "target_modules=[7], which is no list of names"),
        ({"r": 2, "alpha_pattern": ["to_q"]}, "alpha_pattern=['to_q'], which is no object"),
        ({"r": 2, "alpha_pattern": {"to_q": "3"}}, "alpha_pattern with values that are no finite numbers: to_q='3'"),
        ({"r": 2, "alpha_pattern": {"to_q": float("nan")}}, "to_q=nan"),
        ({"r": 2, "rank_pattern": {"to_q": 1.5}}, "rank_pattern with values that are no ranks: to_q=1.5"),
        ({"r": 2, "rank_pattern": {"to_q": 3}}, "have factors of rank 2 where the settings say 3"),
        ({"r": 2, "velora_config": {"rank": 3}}, "its settings say velora_config={'rank': 3}, which is not supported"),
        ({"r": 2, "peft_type": ["LORA"]}, "peft_type=['LORA'], which is not supported"),
        ({"r": 2, "init_lora_weights": {"a": 1}}, "init_lora_weights={'a': 1}, which is not supported"),
    ],
)
def test_wrong_settings_are_named(settings: Any, message: str, tmp_path: Path) -> None:
    assert message in refused(adapter(tmp_path, settings))


def test_settings_that_leave_something_out_have_pefts_defaults(tmp_path: Path) -> None:
    found = read_adapter(adapter(tmp_path, {"r": 2}), {"transformer": model()}).components["transformer"]
    assert {change.alpha for change in found.values()} == {8.0}, "as LoraConfig"
    found = read_adapter(adapter(tmp_path, b""), {"transformer": model()}).components["transformer"]
    assert {change.alpha for change in found.values()} == {2.0}, "none at all: the factors count as they are"


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(.|.)" * 40, "(x*)*y", r"(\w+\.)*to_q", "[a", "a{1,99999}", "to_q|to_k"]
)
@pytest.mark.parametrize("setting", ["alpha_pattern", "rank_pattern"])
def test_expressions_that_could_hang_are_refused_at_once(setting: str, pattern: str, tmp_path: Path) -> None:
    text = refused(adapter(tmp_path, {"r": 2, setting: {pattern: 2}}))
    assert f"{setting} with expressions that are no names of layers" in text


def test_more_patterns_than_layers_are_refused(tmp_path: Path) -> None:
    text = refused(adapter(tmp_path, {"r": 2, "alpha_pattern": {f"layer{i}": 2 for i in range(100_000)}}))
    assert "alpha_pattern with 100000 names, where there are 4 modules" in text


# Values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_alpha_that_is_not_finite_is_named(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    alpha = {"to_q.alpha": torch.tensor(value, dtype=dtype)}
    assert f"to_q.alpha is {value}, not a finite number" in refused(adapter(tmp_path, b"", **alpha))


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (torch.ones(2), "to_q.alpha is float32 of shape [2], not a finite number"),
        (torch.tensor(True), "to_q.alpha is bool of shape []"),
        (torch.tensor(1.0).to(torch.float8_e4m3fn), "to_q.alpha is float8_e4m3fn"),
    ],
)
def test_an_alpha_that_is_no_number_is_named(alpha: torch.Tensor, message: str, tmp_path: Path) -> None:
    assert message in refused(adapter(tmp_path, b"", **{"to_q.alpha": alpha}))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.complex64])
def test_factors_that_are_no_plain_floats_are_named(dtype: torch.dtype, tmp_path: Path) -> None:
    factor = {"to_q.lora_A.weight": torch.ones(2, 8).to(dtype)}
    name = str(dtype).removeprefix("torch.")
    assert f"1 are {name}, not floats of 16 bits or more; convert them: to_q.lora_A.weight" in refused(
        adapter(tmp_path, b"", **factor)
    )


def test_names_with_line_breaks_or_without_end_stay_one_short_line(tmp_path: Path) -> None:
    odd = {"to_q\n\x1b[31m.lora_A.weight": torch.ones(2, 8)}
    assert r"to_q \x1b[31m" in refused(adapter(tmp_path, b"", **odd))
    endless = {".lora_A" * 100_000: torch.ones(2, 8)}
    assert len(refused(adapter(tmp_path, b"", **endless))) < 1000


def test_names_of_properties_are_not_looked_up(tmp_path: Path) -> None:
    class Model(nn.Module):
        @property
        def costly(self) -> nn.Module:
            raise RuntimeError("was computed")

    file = tmp_path / "x.safetensors"
    save_file({f"costly.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}, file)
    with pytest.raises(AdapterError, match="match nothing"):
        read_adapter(file, {"transformer": Model()})


# In a job


def test_a_job_ends_with_the_users_error_that_names_adapter_and_format(tiny_root: Path, tmp_path: Path) -> None:
    path = tiny.build("flux", tiny_root)
    file = tmp_path / "style-v1.5.safetensors"
    save_file({f"lora_unet_blocks_77_x.lora_{side}.weight": torch.ones(2, 2) for side in ("down", "up")}, file)
    config = load_config(None, [f"model.path={path}", f"lora=[{{path: {file}}}]"])
    with pytest.raises(UserError, match=r"lora 'style-v1\.5': .*diffusers cannot convert it"):
        open_pipeline(config, ALONE)
    save_file({f"transformer.blocks.77.x.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}, file)
    with pytest.raises(UserError, match=r"lora 'style-v1\.5': .*read as diffusers' names.*match nothing"):
        open_pipeline(config, ALONE)


@pytest.mark.parametrize("strength", [".nan", ".inf", "-.inf"])
def test_an_adapters_strength_that_is_not_finite_is_named(strength: str) -> None:
    with pytest.raises(UserError, match=r"lora\.adapters\[0\]\.strength is -?(nan|inf); give a finite number"):
        load_config(None, [f"lora=[{{path: ink, strength: {strength}}}]"])
