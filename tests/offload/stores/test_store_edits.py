"""Edited stores show base + edits, never edits of edits; an edit is made once a node, and is all or nothing."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from offload import DiskStore, EditedFiles, HostStore, StoreError, WeightAway, offload, plan_units
from offload.stores.store import Store
from tests.memory import peak_anonymous_memory
from tests.offload.offload_models import Stack, example
from tests.offload.stores.store_files import Tensors, blockwise, contents, expect_equal, save, varied
from tests.offload.stores.store_ranks import on_ranks
from weights.agreement import node_group
from weights.checkpoint import Checkpoint

MIB = 2**20
# A matrix, a convolution in another dtype, a scalar, one in each of the units; a rank has no part in some.
EDITED = ("embed.weight", "blocks.0.conv.weight", "blocks.1.norm.gain", "blocks.1.half")


@dataclass(frozen=True)
class Add:
    """Adds to a weight; equal for equal amounts."""

    amount: float

    def __call__(self, weight: torch.Tensor) -> None:
        weight += self.amount


def files(directory: Path) -> HostStore:
    return HostStore.from_files(lambda: DiskStore(Checkpoint(directory), blockwise(varied())), group=node_group())


def library(directory: Path) -> HostStore:
    return HostStore.from_tensors(blockwise(varied()), varied, group=node_group())


def disk(directory: Path) -> EditedFiles:
    return EditedFiles(DiskStore(Checkpoint(directory), blockwise(varied())))


STORES: dict[str, Callable[[Path], Store]] = {"files": files, "library": library, "disk": disk}


def edited(*names: str, amount: float) -> Tensors:
    tensors = varied()
    for name in names:
        tensors[name] += amount
    return tensors


@pytest.mark.parametrize("kind", STORES)
def test_every_edit_starts_from_the_base(tmp_path: Path, kind: str) -> None:
    directory = save(tmp_path / "weights", varied(), num_files=2)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()}
    store = STORES[kind](directory)
    for names, amount in ((EDITED, 1.0), (EDITED[:2], 0.5), (EDITED[1:], -2.0), ((), 0.0), (EDITED, 1.0), ((), 0.0)):
        store.edit(dict.fromkeys(names, Add(amount)))
        expect_equal(contents(store), edited(*names, amount=amount))
    store.close()
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()} == before


@pytest.mark.parametrize("kind", STORES)
def test_a_name_that_is_nowhere_changes_nothing(tmp_path: Path, kind: str) -> None:
    store = STORES[kind](save(tmp_path, varied()))
    store.edit({"embed.weight": Add(1.0)})
    with pytest.raises(KeyError, match="nowhere"):
        store.edit({"embed.weight": Add(2.0), "nowhere": Add(2.0)})
    expect_equal(contents(store), edited("embed.weight", amount=1.0))


@pytest.mark.parametrize("kind", ["files", "library"])
def test_an_interrupt_half_way_puts_back_what_was_there(tmp_path: Path, kind: str) -> None:
    def interrupt(weight: torch.Tensor) -> None:
        weight.zero_()
        raise KeyboardInterrupt

    store = STORES[kind](save(tmp_path, varied()))
    store.edit(dict.fromkeys(EDITED, Add(1.0)))
    with pytest.raises(KeyboardInterrupt):
        store.edit({**dict.fromkeys(EDITED, Add(3.0)), "blocks.2.half": interrupt})
    expect_equal(contents(store), edited(*EDITED, amount=1.0))


@dataclass(frozen=True)
class Note:
    """Adds one, and tells who did."""

    name: str
    made: list[str]

    def __call__(self, weight: torch.Tensor) -> None:
        self.made.append(self.name)
        weight += 1


def share_out(rank: int, directory: Path, kind: str) -> tuple[list[str], int]:
    """(the weights that this rank edited, bytes of base it keeps)."""
    store = STORES[kind](directory)
    assert isinstance(store, HostStore)
    made: list[str] = []
    store.edit({name: Note(name, made) for name in EDITED})
    expect_equal(contents(store), edited(*EDITED, amount=1.0))
    first = list(made)
    for active in (EDITED[:2], EDITED, ()):
        dist.barrier()  # nobody reads while others edit
        store.edit({name: Note(name, made) for name in active})
        expect_equal(contents(store), edited(*active, amount=1.0))
    return first, sum(tensor.nbytes for tensor in store._base.values())


@pytest.mark.parametrize("kind", ["files", "library"])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_each_weight_is_edited_by_one_rank_and_seen_by_all(tmp_path: Path, num_ranks: int, kind: str) -> None:
    outcomes = on_ranks(num_ranks, share_out, save(tmp_path, varied(), num_files=2), kind)
    assert all(isinstance(outcome, tuple) for outcome in outcomes), outcomes
    assert sorted(name for made, _ in outcomes for name in made) == sorted(EDITED)
    assert sum(bool(made) for made, _ in outcomes) > 1, "all by one"
    kept = sum(varied()[name].nbytes for name in EDITED) if kind == "library" else 0
    assert sum(held for _, held in outcomes) == kept, "the base, once a node at most, and not for ever more"


def test_what_stays_the_same_is_not_made_again(tmp_path: Path) -> None:
    store = files(save(tmp_path, varied()))
    made: list[str] = []
    edits = {name: Note(name, made) for name in EDITED}
    store.edit(edits)
    store.edit({**edits, "blocks.0.conv.weight": Add(5.0)})
    assert sorted(made) == sorted(EDITED)
    store.edit(dict(edits))
    assert made[len(EDITED) :] == ["blocks.0.conv.weight"]


def fail_on_the_last_rank(rank: int, directory: Path, kind: str, error: type[Exception]) -> list[str]:
    """What went wrong, as it was raised here; the weights are those of before, also for the next edit."""
    store = STORES[kind](directory)
    store.edit(dict.fromkeys(EDITED, Add(1.0)))
    dist.barrier()
    broken = rank == dist.get_world_size() - 1

    def fail(weight: torch.Tensor) -> None:
        if broken:
            weight.zero_()
            raise error("out of luck")
        weight += 7

    raised = []
    try:
        store.edit(dict.fromkeys(EDITED, Add(9.0)) | {f"blocks.{i}.norm.weight": fail for i in range(3)})
    except error as problem:
        raised.append(str(problem))
    expect_equal(contents(store), edited(*EDITED, amount=1.0))
    dist.barrier()
    store.edit({"scale": Add(2.0)})
    expect_equal(contents(store), edited("scale", amount=2.0))
    return raised


@pytest.mark.parametrize("error", [StoreError, MemoryError])
@pytest.mark.parametrize("kind", ["files", "library"])
def test_what_fails_on_one_rank_is_taken_back_on_all(tmp_path: Path, kind: str, error: type[Exception]) -> None:
    outcomes = on_ranks(3, fail_on_the_last_rank, save(tmp_path, varied()), kind, error)
    assert outcomes == [["out of luck"]] * 3


def replace_one_file(rank: int, directory: Path) -> str:
    """Of two files, one is another by the time of the edit: units whose base is in both cannot be made."""
    store = files(directory)
    store.edit(dict.fromkeys(EDITED, Add(1.0)))
    dist.barrier()
    if rank == 0:
        victim = directory / "diffusion_pytorch_model-00002-of-00002.safetensors"
        save_file({"other": torch.ones(3)}, directory / "new")
        os.replace(directory / "new", victim)
    dist.barrier()
    message = "nothing was raised"
    try:
        store.edit(dict.fromkeys(EDITED, Add(9.0)))
    except StoreError as problem:
        message = str(problem)
    expect_equal(contents(store), edited(*EDITED, amount=1.0))
    return message


def test_a_base_that_is_gone_leaves_the_weights_as_they_were(tmp_path: Path) -> None:
    outcomes = on_ranks(2, replace_one_file, save(tmp_path, varied(), num_files=2))
    assert all("was changed or replaced while in use" in str(outcome) for outcome in outcomes), outcomes


def lose_the_base_meanwhile(rank: int, directory: Path) -> list[str]:
    store = files(directory)

    def remove(weight: torch.Tensor) -> None:
        for file in directory.glob("*.safetensors"):
            file.unlink()

    raised = []
    for use in (
        lambda: store.edit({**dict.fromkeys(EDITED, Add(1.0)), "blocks.2.half": remove, "scale": remove}),
        lambda: store.view("blocks.0"),
        lambda: store.edit({}),
    ):
        try:
            use()
        except StoreError as problem:
            raised.append(str(problem))
    return raised


def test_weights_that_cannot_be_put_back_are_shown_to_nobody(tmp_path: Path) -> None:
    """One rank loses the files after another has written: neither the new weights nor the old ones can be had."""
    for outcome in on_ranks(2, lose_the_base_meanwhile, save(tmp_path, varied())):
        assert [("is gone" in text, "after the host store was closed" in text) for text in outcome] == [
            (True, False),
            (False, True),
            (False, True),
        ]


def grow(rank: int, directory: Path, kind: str) -> list[int]:
    """Anonymous memory at the peak of each of several edits, in bytes above what there was before the first."""
    units, group = blockwise(wide()), node_group()
    if kind == "library":
        store = HostStore.from_tensors(units, wide, group=group)
    else:
        store = HostStore.from_files(lambda: DiskStore(Checkpoint(directory), units), group=group)
    peaks = []
    for amount in (1.0, 2.0, 3.0, 4.0):
        dist.barrier()
        with peak_anonymous_memory() as peak:
            store.edit({f"blocks.{i}.w": Add(amount) for i in range(16)})
        peaks.append(peak())
    return peaks


def wide() -> Tensors:
    """64 MiB in units of 4 MiB."""
    return {f"blocks.{i}.w": torch.full((1024, 1024), float(i)) for i in range(16)}


@pytest.mark.parametrize("kind", ["files", "library"])
def test_an_edit_needs_one_unit_more_and_repeated_ones_need_no_more(tmp_path: Path, kind: str) -> None:
    for peaks in on_ranks(2, grow, save(tmp_path, wide()), kind):
        kept = 32 * MIB if kind == "library" else 0  # this rank's half
        assert peaks[0] < kept + 4 * MIB + 4 * MIB
        assert max(peaks[1:]) < 4 * MIB + 4 * MIB


# What the offloader makes of it


def stack_on_disk(directory: Path) -> tuple[Stack, Stack, Path]:
    """A model to offload, the same one to compare with, and its file."""
    file = directory / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in Stack().state_dict().items()}, file)
    return Stack(), Stack(), file


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("resident", [0, 2, 5])
@pytest.mark.parametrize("kind", ["files", "disk"])
def test_what_is_resident_is_edited_too(tmp_path: Path, kind: str, resident: int, inference: bool) -> None:
    ours, plain, file = stack_on_disk(tmp_path)
    disk = DiskStore(Checkpoint(file.parent), plan_units(ours))
    store = EditedFiles(disk) if kind == "disk" else HostStore.from_files(lambda: disk)
    offloaded = offload(ours, store, device=torch.device("cpu"), resident_blocks=resident)
    base = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    for amount in (0.5, -0.25, 0.0, 0.5, 0.0):
        edits = {name: Add(amount) for name in base if amount and name.endswith(("weight", "mean"))}
        with torch.inference_mode(inference):
            offloaded.edit(edits)
        plain.load_state_dict({name: tensor + amount if name in edits else tensor for name, tensor in base.items()})
        with torch.inference_mode():
            assert torch.equal(ours(example()), plain(example()))
        offloaded.end()
        assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in plain.state_dict().items())
        assert not any(tensor.is_inference() for tensor in (*ours.parameters(), *ours.buffers()))
        assert offloaded.bytes_on_device == offloaded.bytes_at_rest


def test_a_resident_block_that_cannot_be_had_again_is_away_until_it_can(tmp_path: Path) -> None:
    ours, plain, file = stack_on_disk(tmp_path)
    store = EditedFiles(DiskStore(Checkpoint(tmp_path), plan_units(ours)))
    offloaded = offload(ours, store, device=torch.device("cpu"), resident_blocks=2)
    (tmp_path / "away").mkdir()
    os.rename(file, tmp_path / "away" / file.name)
    with pytest.raises(StoreError, match="is gone"):
        offloaded.edit({"blocks.0.up.weight": Add(1.0)})
    with pytest.raises(WeightAway, match=r"blocks\.0\.up\.weight"):
        ours.blocks[0].up.weight.sum()
    with pytest.raises(StoreError, match="is gone"):
        offloaded.edit({})
    with pytest.raises(StoreError, match="is gone"):
        ours(example())
    os.rename(tmp_path / "away" / file.name, file)
    assert torch.equal(ours(example()), plain(example()))
