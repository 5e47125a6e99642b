"""What it costs that weights rest on disk or on the host: ours against the peers and against the resident model.

  OMP_NUM_THREADS=1 python scripts/bench_offload.py [--rounds 9] [--json figures.json]

A Flux of 416M parameters in bf16 (57 blocks, 256 tokens) denoises on the CPU. Its checkpoint is written to a temporary
folder first: choose one on a disk with --folder if TMPDIR is in memory. Each arm has a process of its own. A round is
one stage of each arm (by default 3 steps), in random order; ratios are paired within a round and printed as
median and 10th .. 90th percentile. Latents are compared bit for bit with the resident model's before anything is timed.

Arms:
  resident      all weights in memory
  ours, disk    rest=disk, a thread reads the next block from the safetensors files while this one computes
  ours, host    rest=host: the same from the node's one copy in shared memory
  diffusers     enable_group_offload(offload_to_disk_path=...), groups of one block
  accelerate    dispatch_model to disk, from the same files as ours, all of a block at once
  transfer      ours without the compute: the engine fetches all blocks in turn

Cold: the files' pages are dropped from the page cache (posix_fadvise, no root needed) before each step; for ours before
each stage only, as it drops them itself. Warm: they are all there. `exposed` is our step over the longer of resident
and transfer: 1.00 is a step that hides all of the shorter one. Memory is the peak above the process without a model,
sampled all along: `anonymous` is its own, `mapped` is of files and shared memory.

Compute has --threads threads (1) and our copies take one more: leave two cores free. A sample during which other
processes took more than --quiet of a core is repeated, --tries times at most, and the quietest counts; before each, up
to --patience seconds go by until they take less. Times are only as good as the column `others` is near 0.
"""

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import accelerate
import diffusers
import torch
from bench import node_memory, offload_report, page_cache
from bench.checkpoint import write_checkpoint
from bench.offload_report import CASES, Case, Figures
from bench.offload_server import Job, Peak, Sample, Server, busy_seconds


def main() -> None:
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended early"))  # by way of __exit__: the folder is gigabytes
    print(_machine(options.threads), flush=True)
    with tempfile.TemporaryDirectory(prefix="bench_offload.", dir=options.folder) as temporary:
        folder = Path(temporary) / "transformer"
        weights = write_checkpoint(folder)
        page_cache.flush(page_cache.files_in(folder))
        print(
            f"{weights / 2**20:.0f} MiB of bf16 in {temporary}, {options.tokens} tokens, "
            f"{options.steps} steps a stage, window {options.window}"
        )
        store, ranks = node_memory.copies_on_node(folder, weights)
        with _servers(folder, options.threads, options.window) as servers:
            peaks, differences = _check(servers, options)
            samples = _measure(servers, options, peaks)
    figures = Figures(samples, {name: asdict(peak) for name, peak in peaks.items()}, differences, store, ranks)
    print(offload_report.table(figures), flush=True)
    if options.json:
        found = {"machine": _machine(options.threads), "weights": weights, **asdict(figures)}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


@contextmanager
def _servers(folder: Path, num_threads: int, window: int) -> Iterator[dict[str, Server]]:
    """By name. What our store does to the page cache depends on how it found it, so cold and warm have one each."""
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for case in CASES:
            if case.server not in servers:
                own = folder.parent / f"own-{len(servers)}"
                servers[case.server] = stack.enter_context(
                    Server(case.arm, case.state, folder, own, num_threads, window)
                )
        yield servers


def _check(servers: dict[str, Server], options: argparse.Namespace) -> tuple[dict[str, Peak], list[str]]:
    """Peak memory by case, and the peers whose bits differ; leaves the benchmark where ours do."""
    peaks: dict[str, Peak] = {}
    latents = {}
    for case in CASES:
        if case.what == "steps":
            _, peaks[case.name], latents[case.name] = servers[case.server].run(_job(case, options), watch_every_s=0.002)
    expected = latents["resident"]
    assert expected is not None and expected.isfinite().all()
    differing = [name for name, found in latents.items() if found is None or not torch.equal(found, expected)]
    if ours := [name for name in differing if name.startswith("ours")]:
        raise SystemExit(f"{', '.join(ours)}: other bits than resident; nothing was timed")
    print(f"bitwise equal to resident: {'; '.join(name for name in latents if name not in differing)}", flush=True)
    return peaks, differing


def _measure(
    servers: dict[str, Server], options: argparse.Namespace, peaks: dict[str, Peak]
) -> dict[str, list[dict[str, float]]]:
    """Samples by case, one a round; raises `peaks` where more memory is seen."""
    order = random.Random(0)
    samples: dict[str, list[dict[str, float]]] = {case.name: [] for case in CASES}
    end = time.monotonic() + options.minutes * 60
    for _ in range(options.rounds):
        if time.monotonic() > end:
            break
        for case in order.sample(CASES, len(CASES)):
            sample, peak = _quietest(servers[case.server], _job(case, options), options)
            samples[case.name].append(asdict(sample))
            if case.name in peaks:
                peaks[case.name] = peaks[case.name].over(peak)
    return samples


def _quietest(server: Server, job: Job, options: argparse.Namespace) -> tuple[Sample, Peak]:
    found = []
    for _ in range(options.tries):
        _wait_for_quiet(options.quiet, options.patience)
        sample, peak, _ = server.run(job, watch_every_s=0.05)
        found.append((sample, peak))
        if sample.others <= options.quiet * sample.seconds:
            break
    return min(found, key=lambda pair: pair[0].others / pair[0].seconds)


def _wait_for_quiet(share: float, patience_s: float, window_s: float = 0.3) -> None:
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(window_s)
        if busy_seconds() - before <= share * window_s:
            return


def _job(case: Case, options: argparse.Namespace) -> Job:
    return Job(case.what, options.steps, case.state, options.tokens)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60, help="no round begins later (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="denoise steps of a stage (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=256, help="of picture and text together (default: %(default)s)")
    parser.add_argument("--window", type=int, default=2, help="of ours, in blocks (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="that compute (default: %(default)s)")
    parser.add_argument("--quiet", type=float, default=0.1, help="of a core, for others (default: %(default)s)")
    parser.add_argument("--tries", type=int, default=3, help="to get a quiet sample (default: %(default)s)")
    parser.add_argument("--patience", type=float, default=20, help="seconds to wait for quiet (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes (default: TMPDIR, or /tmp)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures, sample by sample, there too")
    options = parser.parse_args()
    if min(options.rounds, options.steps, options.threads, options.tries) < 1:
        parser.error("--rounds, --steps, --threads and --tries must be at least 1")
    if options.tokens <= offload_report.TEXT_TOKENS:
        parser.error(f"--tokens={options.tokens}; more than the {offload_report.TEXT_TOKENS} of the text")
    return options


def _machine(num_threads: int) -> str:
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, load {load}, {num_threads} thread(s) compute, one copies; "
        f"Python {platform.python_version()}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"accelerate {accelerate.__version__}"
    )


if __name__ == "__main__":
    main()
