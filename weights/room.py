"""Whether host memory has room for weights, asked before it is taken: the kernel answers later, with a kill."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil


class NoRoom(ValueError):
    """Host memory cannot hold what a placement wants: says how much is wanted, how much there is, and what fits."""


@dataclass(frozen=True)
class Room:
    """Bytes that may still be allocated here, and what it is that allows no more."""

    num_bytes: int
    bound: str


def require_room(num_bytes: int, what: str, alternatives: Mapping[str, int], *, root: Path = Path("/")) -> None:
    """Raise NoRoom where `num_bytes` more of host memory, for `what`, are more than there is room for.

    `alternatives`: what else could be asked for, such as "rest: disk", and the bytes of host memory it needs, the
    nearest first; the error names the first that fits.
    """
    room = available_room(root)
    if num_bytes <= room.num_bytes:
        return
    fitting = [name for name, needed in alternatives.items() if needed <= room.num_bytes]
    others = ", ".join(f"{name} needs {_gib(needed)}" for name, needed in alternatives.items())
    fix = f"{fitting[0]} fits ({_gib(alternatives[fitting[0]])})" if fitting else f"nothing smaller fits ({others})"
    if not alternatives:
        fix = "start fewer ranks a node, or give them more"
    raise NoRoom(f"{what} needs {_gib(num_bytes)} of host memory, {room.bound} leaves {_gib(room.num_bytes)}: {fix}")


def available_room(root: Path = Path("/")) -> Room:
    """The least that the machine's free memory and any control group around this process leave.

    Shared memory counts as memory in both. `root` is where /proc and /sys are found.
    """
    return min((_free_memory(root), *_cgroup_rooms(root)), key=lambda room: room.num_bytes)


def _free_memory(root: Path) -> Room:
    """MemAvailable: free memory and page cache that can be reclaimed at once."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except FileNotFoundError:  # not Linux
        return Room(psutil.virtual_memory().available, "the memory of this machine")
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return Room(kib * 1024, "the memory of this machine")


def _cgroup_rooms(root: Path) -> Iterator[Room]:
    """What each control group with a memory limit leaves, from this process's own up to the topmost visible one.

    Version 1 and 2 of https://docs.kernel.org/admin-guide/cgroup-v2.html; a process can be in both.
    """
    for directory, names in _memory_cgroups(root):
        limit, usage = _number(directory / names.limit), _number(directory / names.usage)
        if limit is None or usage is None:
            continue
        reclaimable = _stat(directory / "memory.stat", names.inactive_file)
        yield Room(max(limit - usage + reclaimable, 0), f"the control group {directory} with a limit of {_gib(limit)}")


@dataclass(frozen=True)
class _Names:
    limit: str
    usage: str
    inactive_file: str  # page cache not used of late, summed over the groups below: given up before anything is killed


_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Names("memory.max", "memory.current", "inactive_file")


def _memory_cgroups(root: Path) -> Iterator[tuple[Path, _Names]]:
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except FileNotFoundError:  # not Linux
        return
    own = {c: path for _, cs, path in (line.split(":", 2) for line in memberships) for c in cs.split(",")}
    for line in mounts:
        # 36 35 98:0 /root /mount/point rw,noatime master:1 - type source options
        fields, (kind, _, options) = line.split(" - ")[0].split(), line.split(" - ")[1].split(maxsplit=2)
        if kind == "cgroup2" and "" in own:
            names, path = _V2, own[""]
        elif kind == "cgroup" and "memory" in options.split(",") and "memory" in own:
            names, path = _V1, own["memory"]
        else:
            continue
        yield from ((directory, names) for directory in _upwards(root, path, mount_root=fields[3], mount=fields[4]))


def _upwards(root: Path, cgroup: str, *, mount_root: str, mount: str) -> Iterator[Path]:
    """The directories of a control group and of those around it. In a container the mount may show only a part of
    the tree, or (with a namespace of its own) call the part's top "/"; a group outside it is seen as its top."""
    top = root / mount.lstrip("/")
    group = PurePosixPath(cgroup)
    is_below = group.is_relative_to(mount_root) and ".." not in group.parts
    directory = top / group.relative_to(mount_root) if is_below else top
    yield from (d for d in (directory, *directory.parents) if d == top or top in d.parents)


def _number(file: Path) -> int | None:
    """None for "max", and for a file that is not there: the topmost group has none."""
    try:
        text = file.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if text == "max" else int(text)


def _stat(file: Path, name: str) -> int:
    try:
        fields = dict(line.split() for line in file.read_text().splitlines())
    except FileNotFoundError:
        return 0
    return int(fields.get(name, 0))


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
