"""The host store is one copy for all ranks of a node and gone when they are; all raise what any finds wrong."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from offload.stores.disk import DiskStore
from offload.stores.host import HostStore
from offload.stores.packing import views
from offload.stores.shared_memory import SharedMemory
from offload.stores.store import StoreError
from tests.memory import peak_anonymous_memory
from tests.offload.stores.store_files import Tensors, blockwise, contents, expect_equal, save, varied
from tests.offload.stores.store_ranks import Ranks, on_ranks, proportional_set_size
from weights.agreement import node_group, on_all_ranks
from weights.checkpoint import Checkpoint, CheckpointError, KeysDiffer
from weights.room import NoRoom

MIB = 2**20


def wide() -> Tensors:
    """128 MiB, the half of it in one unit, in fp32."""
    return {f"blocks.{i}.w": torch.full((1024, 1024), float(i)) for i in range(16)} | {"embed": torch.ones(4096, 4096)}


# One process


def test_the_files_bits_are_there_to_see_and_to_read(tmp_path: Path) -> None:
    tensors = varied()
    save(tmp_path, tensors, num_files=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = HostStore.from_files(lambda: DiskStore(Checkpoint(tmp_path), blockwise(tensors)))
        expect_equal(seen(store), tensors)
        expect_equal(contents(store), tensors)
    assert all(t.data_ptr() % 64 == 0 for t in seen(store).values())  # as the allocators would have it
    store.close()
    store.close()


def seen(store: HostStore) -> Tensors:
    """Every tensor of a store where it lies."""
    return {n: t for unit, packing in store.packings.items() for n, t in views(packing, store.view(unit)).items()}


def test_a_live_modules_tensors_are_converted_and_laid_out(tmp_path: Path) -> None:
    conv, scale = torch.randn(4, 6, 3, 3), torch.tensor(2.5)
    wanted = {"conv": conv.bfloat16().to(memory_format=torch.channels_last), "scale": scale}
    store = HostStore.from_tensors({"": wanted}, lambda: {"conv": conv, "scale": scale, "tied to conv": conv})
    expect_equal(seen(store), wanted)


def test_without_weights_there_is_a_store_all_the_same() -> None:
    store = HostStore.from_tensors({"": {}}, dict)
    assert store.view("").numel() == 0


def test_a_closed_store_shows_nothing_but_keeps_what_it_showed() -> None:
    tensors = {"a": torch.randn(5)}
    store = HostStore.from_tensors({"": tensors}, lambda: tensors)
    views_before = seen(store)
    store.close()
    expect_equal(views_before, tensors)
    with pytest.raises(StoreError, match="after the host store was closed"):
        store.view("")


def test_what_does_not_fit_is_refused_before_it_is_allocated() -> None:
    units = {f"blocks.{i}": {f"blocks.{i}.w": torch.empty(2**38, device="meta")} for i in range(1024)}
    figures = r"transformer \(rest: host\) needs 1048576.00 GiB of host memory, .* leaves \d+.\d\d GiB: "
    with pytest.raises(NoRoom, match=figures + r"nothing smaller fits \(rest: disk needs 2048.00 GiB\)"):
        HostStore.from_tensors(units, dict, component="transformer")


def test_it_is_made_in_normal_mode() -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inside torch\.inference_mode"):
        HostStore.from_tensors({"": {"a": torch.zeros(2)}}, lambda: {"a": torch.zeros(2)})


def test_a_device_that_cannot_lock_pages_is_named(caplog: pytest.LogCaptureFixture) -> None:
    memory = SharedMemory(2**20, None)
    memory.page_lock(torch.device("cpu"), [2**20])
    assert not caplog.records
    with caplog.at_level(logging.INFO):
        memory.page_lock(torch.device("xpu"), [2**20])
    assert "stay pageable (there is no call for it on xpu)" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs cuda")
def test_pages_are_locked_for_cuda_and_read_only_for_all() -> None:
    device, tensors = torch.device("cuda", 0), {"a": torch.randn(2**20)}
    store = HostStore.from_tensors({"": tensors}, lambda: tensors, device=device)
    assert store.view("").is_pinned()
    there = torch.empty_like(store.view(""), device=device).copy_(store.view(""), non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(there.cpu(), store.view(""))
    store.close()


def test_a_write_ends_the_process_not_the_weights() -> None:
    code = (
        "import torch; from offload.stores.host import HostStore\n"
        "store = HostStore.from_tensors({'': {'a': torch.zeros(2)}}, lambda: {'a': torch.zeros(2)})\n"
        "store.view('').fill_(1)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGSEGV


# Several ranks of a node


def load_and_measure(rank: int, directory: Path) -> tuple[int, int, int]:
    """(this rank's part of the mapping, the peak of anonymous memory while it was filled, bytes of the store)."""
    group = node_group()
    tensors = wide()
    units = blockwise(tensors)
    del tensors
    dist.barrier()
    with peak_anonymous_memory() as peak:
        store = HostStore.from_files(lambda: DiskStore(Checkpoint(directory), units), group=group)
    for unit in store.packings:
        torch.equal(store.view(unit), store.view(unit))
    expect_equal(dict(list(seen(store).items())[:2]), dict(list(wide().items())[:2]))
    dist.barrier()
    result = proportional_set_size("memfd:"), peak(), sum(p.num_bytes for p in store.packings.values())
    dist.barrier()
    return result


def test_four_ranks_hold_one_copy(tmp_path: Path) -> None:
    outcomes = on_ranks(4, load_and_measure, save(tmp_path, wide(), num_files=2))
    assert all(isinstance(outcome, tuple) for outcome in outcomes), outcomes
    copy = outcomes[0][2]
    assert copy == 128 * MIB
    assert copy * 0.99 <= sum(pss for pss, _, _ in outcomes) <= copy * 1.1
    assert max(anonymous for _, anonymous, _ in outcomes) < copy // 8  # nothing is staged


def load_in_library(rank: int) -> Tensors:
    tensors, group = varied(), node_group()

    def load() -> Mapping[str, torch.Tensor]:
        assert rank == 0, "only the first rank loads"
        return tensors

    store = HostStore.from_tensors(blockwise(tensors), load, group=group)
    expect_equal(seen(store), tensors)


def test_one_rank_loads_for_all() -> None:
    assert on_ranks(3, load_in_library) == [None] * 3


def load_with_trouble(rank: int, root: Path, trouble: str) -> None:
    """The last rank sees something else than the others, as with a stale copy of a file."""
    group, tensors = node_group(), varied()
    directory = save(root / str(rank), tensors)
    is_last = rank == dist.get_world_size() - 1

    def open_files() -> DiskStore:
        files = TROUBLE[trouble][0](directory) if is_last else None
        return files or DiskStore(Checkpoint(directory), blockwise(tensors))

    HostStore.from_files(open_files, group=group)


def lose_a_key(directory: Path) -> None:
    save(directory, {name: tensor for name, tensor in varied().items() if name != "scale"})


def truncate(directory: Path) -> None:
    os.truncate(directory / "diffusion_pytorch_model.safetensors", 100)


def replace_after_opening(directory: Path) -> DiskStore:
    files = DiskStore(Checkpoint(directory), blockwise(varied()))
    save(directory, varied(num_blocks=2))
    return files


class Unsendable(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def break_down(directory: Path) -> None:
    raise Unsendable("out", "of order")


TROUBLE: dict[str, tuple[Callable[[Path], DiskStore | None], type[Exception], str]] = {
    "missing key": (lose_a_key, KeysDiffer, "1 missing (scale)"),
    "truncated": (truncate, CheckpointError, "damaged or cut short"),
    "replaced while it is read": (replace_after_opening, StoreError, "was"),
    "anything else": (break_down, RuntimeError, "Unsendable: out of order"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_what_one_rank_finds_wrong_is_raised_on_all(tmp_path: Path, trouble: str) -> None:
    _, error, message = TROUBLE[trouble]
    outcomes = on_ranks(3, load_with_trouble, tmp_path, trouble)
    assert [type(outcome) for outcome in outcomes[:2]] == [error] * 2
    assert len({str(outcome).replace("Unsendable: ", "") for outcome in outcomes}) == 1
    assert message in str(outcomes[0])


def fail_to_load(rank: int) -> None:
    HostStore.from_tensors({"": {"a": torch.zeros(2)}}, lambda: pickle.loads(b"not a pickle"), group=node_group())


def test_what_the_loading_rank_finds_wrong_is_raised_on_all() -> None:
    assert [type(outcome) for outcome in on_ranks(3, fail_to_load)] == [pickle.UnpicklingError] * 3


def hold(rank: int, directory: Path) -> None:
    store = HostStore.from_files(lambda: DiskStore(Checkpoint(directory), blockwise(wide())), group=node_group())
    (directory / f"ready{rank}").touch()
    time.sleep(60)
    store.close()


def die_while_filling(rank: int, directory: Path) -> None:
    group = node_group()
    memory = SharedMemory(64 * MIB, group)
    memory.bytes.fill_(1)
    (directory / f"ready{rank}").touch()
    on_all_ranks(lambda: time.sleep(60), group)


@pytest.mark.parametrize("state", [hold, die_while_filling])
def test_killed_ranks_leave_nothing_behind(
    tmp_path: Path,
    state: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save(tmp_path, wide())
    own = tmp_path_factory.mktemp("temporary")  # other tests, which run beside this one, have the common one
    monkeypatch.setenv("TMPDIR", str(own))
    monkeypatch.setattr(tempfile, "tempdir", None)
    before = in_shared_memory()
    ranks = Ranks(2, state, tmp_path)
    while len(list(tmp_path.glob("ready*"))) < 2:
        time.sleep(0.05)
    assert in_shared_memory() <= before
    inodes = {inode for pid in ranks.pids() for inode in shared_inodes(Path(f"/proc/{pid}/maps"))}
    assert len(inodes) == 1  # the same memory in both
    ranks.kill()
    assert in_shared_memory() <= before
    assert not [name for name in os.listdir(own) if name.startswith("dit-runner")]
    assert not any(inodes & shared_inodes(maps) for maps in Path("/proc").glob("[0-9]*/maps"))


def in_shared_memory() -> set[str]:
    """But for semaphores: Python's own, which other tests make and lose at any time."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.")}


def shared_inodes(maps: Path) -> set[str]:
    """Of the shared memories that a process maps."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:  # the process is gone, or is not ours
        return set()
    return {line.split()[4] for line in lines if "memfd:dit-runner" in line}
