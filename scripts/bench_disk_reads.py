"""How fast the ways to read a weight file are, what they cost in CPU time, and what they leave in the page cache.

`python scripts/bench_disk_reads.py [--file big.safetensors] [--unit-mib 24] [--repeats 5]`: the ways take turns, cold
(the file evicted first) and warm (read first), and the medians are printed. Without a file, one of 1 GiB is made.
"""

import argparse
import mmap
import os
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from weights.weight_file import WeightFile, identity

MIB = 2**20
PAGE = mmap.PAGESIZE
Read = Callable[[int, memoryview], object]


def direct(path: Path, chunk: int = MIB) -> Read:
    """O_DIRECT, through an aligned buffer."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def read(offset: int, target: memoryview) -> None:
        with mmap.mmap(-1, chunk) as bounce, memoryview(bounce) as aligned:
            done = 0
            while done < len(target):
                start = (offset + done) // PAGE * PAGE
                skipped = offset + done - start
                count = min(os.preadv(fd, [aligned], start) - skipped, len(target) - done)
                target[done : done + count] = aligned[skipped : skipped + count]
                done += count

    return read


def buffered(path: Path) -> Read:
    """Through the page cache, and left there."""
    fd = os.open(path, os.O_RDONLY)
    return lambda offset, target: os.preadv(fd, [target], offset)


def weight_file(path: Path) -> Read:
    """As the disk store reads: through the page cache, which is left as it was found."""
    file = WeightFile(path, identity(path))
    return lambda offset, target: file.read_into(offset, [("unit", target)])


def prepare(path: Path, state: str) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while state == "warm" and file.read(16 * MIB):
            pass


def measure(read: Read, size: int, unit: int, threads: int) -> tuple[float, float]:
    """(GB per second, CPU seconds per GB)."""
    offsets = range(1000, size - unit - PAGE, unit)
    buffers = [memoryview(bytearray(b"1") * unit) for _ in range(threads)]
    used, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda k: [read(offset, buffers[k]) for offset in offsets[k::threads]], range(threads)))
    seconds, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    gigabytes = len(offsets) * unit / 1e9
    return gigabytes / seconds, (now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime) / gigabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--unit-mib", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.NamedTemporaryFile(dir=".") as made:
        path = options.file or Path(made.name)
        if not options.file:
            made.write(os.urandom(16 * MIB) * 64)
            os.fsync(made.fileno())
        results = defaultdict(list)
        ways = {"O_DIRECT": direct, "buffered": buffered, "disk store": weight_file}
        cases = [(s, way, threads) for s in ("cold", "warm") for threads in (1, 2) for way in ways]
        for case in cases * options.repeats:
            prepare(path, case[0])
            results[case].append(measure(ways[case[1]](path), path.stat().st_size, options.unit_mib * MIB, case[2]))
        for (state, way, threads), found in results.items():
            speed, cpu = (statistics.median(column) for column in zip(*found, strict=True))
            print(f"{state}  {way:10}  {threads} threads  {speed:5.2f} GB/s  {cpu:5.2f} CPU s/GB")


if __name__ == "__main__":
    main()
