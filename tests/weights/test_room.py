"""The room check finds the tightest of the limits around a process, and its error says what to ask for instead."""

import pickle
from pathlib import Path

import pytest

from weights.room import NoRoom, available_room, require_room

GIB = 2**30
V2_MOUNT = "31 23 0:28 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate\n"
V1_MOUNTS = (
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 31 0:29 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def machine(root: Path, available: float, cgroup: str = "", mounts: str = "") -> Path:
    """A /proc that says `available` GiB are."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {int(available * GIB) // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda rw\n" + mounts)
    return root


def group_v2(root: Path, name: str, limit: float | None, usage: float, inactive_file: float = 0) -> None:
    directory = root / "sys/fs/cgroup" / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.max").write_text("max\n" if limit is None else f"{int(limit * GIB)}\n")
    (directory / "memory.current").write_text(f"{int(usage * GIB)}\n")
    (directory / "memory.stat").write_text(f"anon 5\nactive_file 7\ninactive_file {int(inactive_file * GIB)}\n")


def group_v1(root: Path, name: str, limit: int, usage: float, inactive_file: float = 0) -> None:
    directory = root / "sys/fs/cgroup/memory" / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (directory / "memory.usage_in_bytes").write_text(f"{int(usage * GIB)}\n")
    (directory / "memory.stat").write_text(f"inactive_file 3\ntotal_inactive_file {int(inactive_file * GIB)}\n")


def test_without_limits_free_memory_is_the_room(tmp_path: Path) -> None:
    room = available_room(machine(tmp_path, available=5, cgroup="0::/job\n", mounts=V2_MOUNT.format(root="/")))
    assert (room.num_bytes, room.bound) == (5 * GIB, "the memory of this machine")


def test_the_tightest_group_around_the_process_counts(tmp_path: Path) -> None:
    machine(tmp_path, available=100, cgroup="0::/slurm/job/step\n", mounts=V2_MOUNT.format(root="/"))
    group_v2(tmp_path, "slurm/job/step", limit=None, usage=1)
    group_v2(tmp_path, "slurm/job", limit=8, usage=6, inactive_file=1)
    group_v2(tmp_path, "slurm", limit=64, usage=20)
    room = available_room(tmp_path)
    assert room.num_bytes == 3 * GIB  # page cache that can go is not used memory
    assert room.bound.endswith("/slurm/job with a limit of 8.00 GiB")


def test_the_process_may_be_in_the_tightest_group_itself(tmp_path: Path) -> None:
    machine(tmp_path, available=100, cgroup="0::/slurm/job\n", mounts=V2_MOUNT.format(root="/"))
    group_v2(tmp_path, "slurm/job", limit=8, usage=9)
    group_v2(tmp_path, "slurm", limit=64, usage=20)
    assert available_room(tmp_path).num_bytes == 0


def test_version_1_is_read_through_its_own_names(tmp_path: Path) -> None:
    memberships = "5:cpu,cpuacct:/other\n4:memory:/slurm/job\n0::/\n"
    machine(tmp_path, available=100, cgroup=memberships, mounts=V1_MOUNTS.format(root="/"))
    group_v1(tmp_path, "slurm/job", limit=8 * GIB, usage=6, inactive_file=0.5)
    group_v1(tmp_path, "", limit=9223372036854771712, usage=20)  # how version 1 says "max"
    assert available_room(tmp_path).num_bytes == 2.5 * GIB


@pytest.mark.parametrize(
    ("cgroup", "mount_root"),
    [("/docker/abc", "/docker/abc"), ("/docker/abc", "/elsewhere"), ("/", "/"), ("/../abc", "/")],
    ids=["mounted from its own group", "mounted from another", "namespace of its own", "outside its namespace"],
)
def test_in_a_container_the_top_of_the_mount_is_the_limit(tmp_path: Path, cgroup: str, mount_root: str) -> None:
    machine(tmp_path, available=100, cgroup=f"0::{cgroup}\n", mounts=V2_MOUNT.format(root=mount_root))
    group_v2(tmp_path, "", limit=4, usage=1)
    assert available_room(tmp_path).num_bytes == 3 * GIB


def test_groups_without_files_set_no_limit(tmp_path: Path) -> None:
    machine(tmp_path, available=5, cgroup="4:memory:/gone\n0::/gone\n", mounts=V1_MOUNTS.format(root="/"))
    assert available_room(tmp_path).num_bytes == 5 * GIB


def test_without_proc_the_system_is_asked(tmp_path: Path) -> None:
    assert available_room(tmp_path).num_bytes > 0


def test_this_machine_has_some_room() -> None:
    assert 0 < available_room().num_bytes < 2**50
    require_room(1, "a byte", {})


@pytest.mark.parametrize(
    ("alternatives", "fix"),
    [
        ({"rest: disk": GIB, "none": 0}, r"rest: disk fits \(1.00 GiB\)"),
        ({"host for half": 6 * GIB, "rest: disk": GIB}, r"rest: disk fits \(1.00 GiB\)"),
        ({"rest: disk": 6 * GIB}, r"nothing smaller fits \(rest: disk needs 6.00 GiB\)"),
    ],
)
def test_the_error_has_the_figures_and_what_fits(tmp_path: Path, alternatives: dict[str, int], fix: str) -> None:
    machine(tmp_path, available=5)
    require_room(5 * GIB, "transformer (rest: host)", alternatives, root=tmp_path)
    figures = r"transformer \(rest: host\) needs 7.50 GiB of host memory, the memory of this machine leaves 5.00 GiB: "
    with pytest.raises(NoRoom, match=figures + fix) as raised:
        require_room(int(7.5 * GIB), "transformer (rest: host)", alternatives, root=tmp_path)
    assert isinstance(raised.value, ValueError)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # other ranks are sent it
