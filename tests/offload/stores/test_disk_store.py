"""The disk store gives the bits that are in the files, leaves the page cache alone, and trusts no changed file."""

import ctypes
import json
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from offload.stores import steps
from offload.stores.disk import DiskStore
from offload.stores.packing import views
from offload.stores.store import StoreError
from tests.offload.stores.store_files import Tensors, blockwise, contents, expect_equal, save, varied
from weights.checkpoint import Checkpoint, CheckpointError, KeysDiffer, Library


@pytest.mark.parametrize("num_files", [1, 3])
def test_every_tensor_has_the_bits_in_the_files(tmp_path: Path, num_files: int) -> None:
    tensors = varied()
    store = DiskStore(Checkpoint(save(tmp_path, tensors, num_files)), blockwise(tensors))
    assert store.view("blocks.0") is None
    expect_equal(contents(store), tensors)
    store.close()
    store.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_are_converted_as_the_library_converts_them(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "RUN_BYTES", 64)  # in several goes, and by rows
    tensors = varied()
    wanted = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    expect_equal(contents(DiskStore(Checkpoint(save(tmp_path, tensors)), blockwise(wanted))), wanted)


def test_permuted_tensors_keep_their_strides(tmp_path: Path) -> None:
    conv, linear = torch.randn(4, 6, 3, 3), torch.randn(5, 8)
    save(tmp_path, {"conv": conv, "linear": linear, "wide": linear.double()})
    wanted = {
        "conv": conv.to(memory_format=torch.channels_last),
        "linear": linear.t().contiguous().t(),
        "wide": linear.t().contiguous().t(),
    }
    units = {"": {name: torch.empty_strided(t.shape, t.stride(), device="meta") for name, t in wanted.items()}}
    expect_equal(contents(DiskStore(Checkpoint(tmp_path), units)), wanted)


@pytest.mark.parametrize("piece", [512, 1536, 2**20])
@pytest.mark.parametrize("run_bytes", [64, 32 * 2**20])
def test_a_unit_is_read_in_pieces(tmp_path: Path, piece: int, run_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is stored, converted, and permuted; also what fits no piece, and what lies across two."""
    monkeypatch.setattr(steps, "RUN_BYTES", run_bytes)
    big = torch.randn(40, 30)
    tensors = varied() | {"big": big, "double": big.double(), "conv": torch.randn(4, 6, 3, 3), "flipped": big.double()}
    wanted = tensors | {
        "double": tensors["double"].bfloat16(),
        "conv": tensors["conv"].to(memory_format=torch.channels_last),
        "flipped": big.t().contiguous().t(),
    }
    units = blockwise(tensors)
    units[""] |= {
        name: torch.empty_strided(wanted[name].shape, wanted[name].stride(), dtype=wanted[name].dtype, device="meta")
        for name in ("double", "conv", "flipped")
    }
    store = DiskStore(Checkpoint(save(tmp_path, tensors, num_files=2)), units)
    found: Tensors = {}
    for unit, packing in store.packings.items():
        out = torch.full((packing.num_bytes,), 0xA5, dtype=torch.uint8)
        for start in range(0, packing.num_bytes, piece):
            store.read(unit, out[start : start + piece], start)
        found |= views(packing, out)
    expect_equal(found, wanted)


@pytest.mark.parametrize("stored_name", ["shared.weight", "embed.weight"])
def test_a_tied_weight_is_found_under_any_of_its_names(tmp_path: Path, stored_name: str) -> None:
    weight = torch.randn(4, 4)
    save(tmp_path, {stored_name: weight})
    units, aliases = {"": {"shared.weight": weight}}, {"shared.weight": ["embed.weight"]}
    store = DiskStore(Checkpoint(tmp_path), units, aliases=aliases)
    expect_equal(contents(store), {"shared.weight": weight})


def test_renamed_keys_and_variants_are_found(tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    save_file({"model.w": weight}, tmp_path / "model.fp16.safetensors")
    checkpoint = Checkpoint(tmp_path, Library.transformers, "fp16", rename=lambda key: key.removeprefix("model."))
    store = DiskStore(checkpoint, {"": {"w": weight}})
    expect_equal(contents(store), {"w": weight})


def test_neighbours_in_the_file_are_read_in_one_go(tmp_path: Path) -> None:
    tensors = {f"blocks.{i}.{j}": torch.full((100,), i * 10.0 + j) for i in range(3) for j in range(8)}
    store = DiskStore(Checkpoint(save(tmp_path, tensors)), blockwise(tensors))
    contents(store)
    assert [len(steps) for steps in store._steps.values()] == [1, 1, 1]


def test_threads_read_at_once(tmp_path: Path) -> None:
    tensors = varied(num_blocks=20)
    store = DiskStore(Checkpoint(save(tmp_path, tensors, num_files=2)), blockwise(tensors))
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: contents(store), range(24)):
            expect_equal(found, tensors)


@pytest.mark.parametrize("num_shares", [1, 3, 50])
def test_shares_fill_every_unit_once(tmp_path: Path, num_shares: int) -> None:
    tensors = {f"blocks.{i}.w": torch.randn(300, 300) for i in range(10)}
    store = DiskStore(Checkpoint(save(tmp_path, tensors, num_files=2)), blockwise(tensors))
    filled: dict[str, int] = {}
    for share in range(num_shares):
        mine: list[str] = []
        buffers = {unit: torch.empty(packing.num_bytes, dtype=torch.uint8) for unit, packing in store.packings.items()}
        store.read_share(
            lambda unit, mine=mine, buffers=buffers: (mine.append(unit), buffers[unit])[1], share, num_shares
        )
        assert len(mine) <= -(-10 // num_shares) + 1
        for unit in mine:
            filled[unit] = filled.get(unit, 0) + 1
    assert filled == dict.fromkeys(store.packings, 1)


# What is wrong is raised before any weight is read


def changed(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        file = directory / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return apply


def truncated(directory: Path) -> None:
    file = directory / "diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size - 1)


DAMAGE: dict[str, tuple[Callable[[Path], None], type[CheckpointError], str]] = {
    "missing": (changed(lambda t: t.pop("scale")), KeysDiffer, r"1 missing \(scale\)"),
    "missing, and extra": (
        changed(lambda t: t.update(stranger=t.pop("scale"))),
        KeysDiffer,
        r"1 missing \(scale\) and 1 extra \(stranger\)",
    ),
    "misshapen": (
        changed(lambda t: t.update(scale=torch.zeros(3))),
        CheckpointError,
        r"scale is stored as \[3\], the module has \[\]",
    ),
    "quantised": (
        changed(lambda t: t.update({"embed.weight": t["embed.weight"].to(torch.int8)})),
        CheckpointError,
        r"embed.weight is stored in torch.int8, the module has torch.float32",
    ),
    "truncated": (truncated, CheckpointError, "damaged or cut short"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    apply, error, message = DAMAGE[damage]
    tensors = varied()
    apply(save(tmp_path, tensors))
    with pytest.raises(error, match=message) as raised:
        DiskStore(Checkpoint(tmp_path), blockwise(tensors))
    assert isinstance(raised.value, KeysDiffer) == (error is KeysDiffer)


# What goes wrong later names file and tensor


def truncate(file: Path) -> None:
    os.truncate(file, 8 + int.from_bytes(file.read_bytes()[:8], "little") + 2000)


def replace(file: Path) -> None:
    """By a file of the same size and header, as a new download would."""
    new = file.with_suffix(".new")
    new.write_bytes(file.read_bytes()[:-1] + b"\x55")
    new.rename(file)


def write_into(file: Path) -> None:
    with file.open("r+b") as raw:
        raw.seek(-1, os.SEEK_END)
        raw.write(b"\x55")


def make_unreadable(file: Path) -> None:
    """The store's own descriptor answers reads with an error of the system, as that of a dying disk does."""
    write_only = os.open(file.with_suffix(".other"), os.O_WRONLY | os.O_CREAT)
    for descriptor in Path("/proc/self/fd").iterdir():
        if descriptor.exists() and descriptor.readlink() == file:
            os.dup2(write_only, int(descriptor.name))
    os.close(write_only)


TROUBLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, r"model.safetensors ends at byte \d+, before the end of b: it was truncated"),
    "removed": (Path.unlink, r"model.safetensors is gone \(No such file or directory\), needed for b"),
    "replaced": (replace, r"model.safetensors was changed or replaced while in use: b cannot be trusted"),
    "written into": (write_into, r"model.safetensors was changed or replaced while in use: b cannot be trusted"),
    "unreadable": (make_unreadable, r"model.safetensors: b could not be read: Bad file descriptor"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_a_file_that_changes_is_no_longer_trusted(tmp_path: Path, trouble: str) -> None:
    apply, message = TROUBLE[trouble]
    tensors = {"a": torch.randn(400), "b": torch.randn(400), "c": torch.randn(400)}
    file = save(tmp_path, tensors) / "diffusion_pytorch_model.safetensors"
    store = DiskStore(Checkpoint(tmp_path), {name: {name: tensor} for name, tensor in tensors.items()})
    out = torch.empty(store.packings["b"].num_bytes, dtype=torch.uint8)
    store.read("b", out)
    apply(file)
    with pytest.raises(StoreError, match=message):
        store.read("b", out)


def test_a_closed_store_reads_nothing(tmp_path: Path) -> None:
    store = DiskStore(Checkpoint(save(tmp_path, {"a": torch.zeros(4)})), {"": {"a": torch.zeros(4)}})
    store.close()
    with pytest.raises(StoreError, match="a could not be read"):
        store.read("", torch.empty(512, dtype=torch.uint8))


def test_an_index_with_a_false_header_is_no_crash(tmp_path: Path) -> None:
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.write_bytes((50).to_bytes(8, "little") + json.dumps({"a": {}}).encode())
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        DiskStore(Checkpoint(tmp_path), {"": {"a": torch.zeros(1)}})


# The page cache


def resident_share(file: Path) -> float:
    """The share of a file's pages that are in the page cache, as mincore tells."""
    with file.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        num_pages = -(-len(pages) // mmap.PAGESIZE)
        told = (ctypes.c_ubyte * num_pages)()
        start = ctypes.c_char.from_buffer(pages)
        code = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(pages)), told)
        del start
        assert code == 0
        return sum(page & 1 for page in told) / num_pages


def evict(file: Path) -> None:
    with file.open("rb") as raw:
        os.fsync(raw.fileno())
        os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_share(file) > 0.01:
        pytest.skip("this file system keeps its files in memory")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
@pytest.mark.parametrize("found", ["cold", "warm", "warm but for a hole"])
def test_the_page_cache_is_left_as_it_was_found(tmp_path: Path, found: str) -> None:
    tensors = {f"blocks.{i}.w": torch.randn(2048, 1024) for i in range(16)}  # 128 MiB
    file = save(tmp_path, tensors) / "diffusion_pytorch_model.safetensors"
    evict(file)
    if found != "cold":
        file.read_bytes()
    if found == "warm but for a hole":  # what a system leaves that takes back idle pages
        with file.open("rb") as raw:
            os.posix_fadvise(raw.fileno(), 23 * 2**20, 10 * 2**20, os.POSIX_FADV_DONTNEED)
    store = DiskStore(Checkpoint(tmp_path), blockwise(tensors))
    for _ in range(2):
        expect_equal(contents(store), tensors)
    while_open = resident_share(file)
    store.close()
    if found == "cold":
        assert while_open < 0.3
        assert resident_share(file) < 0.05
    else:
        assert while_open > 0.95
        assert resident_share(file) > 0.95
