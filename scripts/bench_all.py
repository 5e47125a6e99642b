"""All benchmarks, one after the other in one session, and the table of what they found: benchmarks/RESULTS.md.

  make bench                            (40 minutes on two quiet cores)
  python scripts/bench_all.py --only first --only overhead

Each is a command of its own, as it stands in the table, with one thread a rank; it is given up after twice its minutes.
What fails, or is given up, stands in the table as that. Plots of the ratios lie beside the table. Leave the machine
alone meanwhile: how busy it was before and after each is in the table too.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil
from bench import ratios
from bench.ratios import Ratio

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy")
_RANKS = "torchrun --standalone --nproc-per-node 2"


@dataclass(frozen=True)
class Bench:
    """`minutes` it takes on two quiet cores; `limits`: what its figures do not show."""

    name: str
    title: str
    command: str
    minutes: float
    limits: str


BENCHES = (
    Bench("first", "From nothing to the first picture", "python scripts/bench_first.py", 3,
          "a small model in the page cache: the seconds that a large one takes to load are the same for both"),
    Bench("overhead", "What the runner adds to a request", "python scripts/bench_overhead.py --calls 60", 1.5,
          "a request that is all dispatch; one that computes for seconds hides what is added"),
    Bench("modes", "Inference mode where weights are sharded", f"{_RANKS} scripts/bench_sharding.py --part modes", 4,
          "gloo on a CPU: launch costs of a GPU are others"),
    Bench("handwritten", "Sharding against FSDP2 by hand", f"{_RANKS} scripts/bench_sharding.py --part handwritten", 4,
          "gathers over shared memory; no network"),
    Bench("load", "Loading sharded", f"{_RANKS} scripts/bench_sharding.py --part load", 3,
          "files in the page cache; a parallel file system is not here"),
    Bench("resident", "Loading whole, four ranks of a node", "python scripts/bench_resident.py", 1.5,
          "host memory; on a GPU the copy to the device is beside it"),
    Bench("offload", "Offload against the peers", "python scripts/bench_offload.py --rounds 3 --minutes 6", 8,
          "one model of 416M parameters, one disk; compute is a CPU's, and so is its ratio to transfer"),
    Bench("group", "Groups from a disk of 0.1 GB/s",
          "python scripts/bench_group.py --bandwidth 0.1 --layers 8 --heads 16 --encoder-layers 4 --pictures 9 "
          "--rounds 3",
          4, "the reader is slowed, not the disk; a small model"),
    Bench("compile", "Compiled blocks", "python scripts/bench_compile.py", 1.5, "inductor on a CPU; a small model"),
    Bench("context", "Tokens shared out by two ranks", f"{_RANKS} scripts/bench_team.py --part context", 1,
          "exchanges over shared memory; small models of 1,024 tokens"),
    Bench("replay", "What a call log costs", "python scripts/bench_replay.py", 1.5, "a sleep stands for the compute"),
)  # fmt: skip


@dataclass
class Found:
    """What a benchmark printed, and its ratios; `failed` says why there are none, or fewer."""

    bench: Bench
    seconds: float = 0.0
    busy: tuple[float, float] = (0.0, 0.0)
    printed: str = ""
    failed: str = ""
    ratios: list[Ratio] = field(default_factory=list)


def main() -> None:
    options = _parse()
    chosen = [bench for bench in BENCHES if not options.only or bench.name in options.only]
    options.output.mkdir(parents=True, exist_ok=True)
    print(f"{len(chosen)} benchmarks, about {sum(bench.minutes for bench in chosen):.0f} minutes", flush=True)
    found = []
    for bench in chosen:
        print(f"{bench.title}: {bench.command}", flush=True)
        found.append(_run(bench))
        print(f"  {found[-1].failed or f'{found[-1].seconds:.0f} s, {len(found[-1].ratios)} ratios'}", flush=True)
        (options.output / "RESULTS.md").write_text(results(found))
        _plot(found[-1], options.output / f"{bench.name}.png")
    if any(one.failed for one in found):
        raise SystemExit(1)


def _run(bench: Bench) -> Found:
    found = Found(bench)
    words = shlex.split(bench.command)
    start = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "torch.distributed.run"]
    with tempfile.TemporaryDirectory(prefix="bench_all.") as temporary:
        file = Path(temporary) / "ratios.jsonl"
        environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), ratios.FILE: str(file)}
        before, began = psutil.cpu_percent(interval=2), time.perf_counter()
        with (Path(temporary) / "printed").open("w+") as printed:
            process = subprocess.Popen(
                [*start, *words[1:]], cwd=ROOT, env={**os.environ, **environment}, stdout=printed,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(timeout=120 * bench.minutes)
                found.failed = f"FAILED with exit code {code}" if code else ""
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 15)
                process.wait()
                found.failed = f"GIVEN UP after {2 * bench.minutes:g} minutes"
            printed.seek(0)
            found.printed = printed.read()
        found.seconds = time.perf_counter() - began
        found.busy = before, psutil.cpu_percent(interval=2)
        found.ratios = ratios.read(file)
    return found


def results(found: Sequence[Found]) -> str:
    """The page: what was run on what, all ratios in one table, and what each benchmark printed."""
    machine = (
        f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()} {platform.release()}"
    )
    lines = [
        "# Results",
        "",
        "Made by `make bench` (scripts/bench_all.py): side by side in one session, ratios paired within a round, the",
        "median and the 10th to 90th percentile. Below 1 the left one takes less. What is behind each, and figures of",
        "other days, is in [docs/benchmarks.md](../docs/benchmarks.md).",
        "",
        f"- {time.strftime('%Y-%m-%d %H:%M')}, {machine}, one thread a rank, no GPU",
        f"- Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "",
    ]
    for one in found:
        lines += [f"## {one.bench.title}", "", "```sh", f"OMP_NUM_THREADS=1 {one.bench.command}", "```", ""]
        if one.failed:
            lines += [f"**{one.failed}**; what it printed is below.", ""]
        if one.ratios:
            lines += ["| ratio | median | 10th .. 90th | aim | |", "| --- | --- | --- | --- | --- |"]
            for ratio in one.ratios:
                aim = "" if ratio.aim is None else f"{ratio.aim:.3g}"
                span = "counted" if ratio.low == ratio.high else f"{ratio.low:.3f} .. {ratio.high:.3f}"
                lines.append(f"| {ratio.label} | {ratio.median:.3f} | {span} | {aim} | {ratio.verdict} |")
            lines += ["", f"![{one.bench.title}]({one.bench.name}.png)", ""]
        before, after = one.busy
        lines += [
            f"It does not show: {one.bench.limits}.",
            f"It took {one.seconds:.0f} s; the machine was {before:.0f} % busy before it and {after:.0f} % after.",
            "",
            *("<details><summary>What it printed</summary>", "", "```text", one.printed.rstrip(), "```", ""),
            *("</details>", ""),
        ]
    return "\n".join(lines)


def _plot(found: Found, file: Path) -> None:
    if not found.ratios:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ratios = list(reversed(found.ratios))
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.34 * len(ratios)), layout="constrained")
    places = range(len(ratios))
    axes.axvline(1.0, color="0.6", linewidth=1)
    axes.hlines(
        places, [one.low for one in ratios], [one.high for one in ratios], color="#4477aa", linewidth=3, alpha=0.5
    )
    axes.plot([one.median for one in ratios], places, "o", color="#225588")
    for place, one in enumerate(ratios):
        if one.aim is not None:
            axes.plot([one.aim], [place], "|", color="#cc3311", markersize=16, markeredgewidth=2)
    axes.set_yticks(places, [one.label for one in ratios], fontsize=8)
    axes.set_xscale("log")
    axes.set_title(f"{found.bench.title}: median and 10th .. 90th percentile; red: the aim", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [bench.name for bench in BENCHES]
    parser.add_argument("--only", action="append", choices=names, help="one of them, or several (default: all)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks", help="default: benchmarks/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
