"""benchmarks/RESULTS.md: what was run on what, the ratios of each benchmark, and what each printed; and the plots."""

import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import psutil

from bench.benches import Bench
from bench.found import Found
from bench.ratios import Ratio

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy")


def results(found: Sequence[Found], benches: Mapping[str, Bench], *, dry: bool = False) -> str:
    """The page; what failed or was not run stands on it as that."""
    machine = (
        f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()} {platform.release()}"
    )
    lines = [
        "# Results",
        "",
        *(["**A dry run, to see whether all of it works: its figures mean nothing.**", ""] if dry else []),
        "Made by `make bench` (scripts/bench_all.py): side by side in one session, ratios paired within a round, the",
        "median and the 10th to 90th percentile. Below 1 the left one takes less. What is behind each, and figures of",
        "other days, is in [docs/benchmarks.md](../docs/benchmarks.md).",
        "",
        f"- {machine}, one thread a rank, no GPU",
        f"- Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        f"- {_told(found)}",
        "",
    ]
    for one in found:
        lines += _section(one, benches[one.name])
    return "\n".join(lines)


def _told(found: Sequence[Found]) -> str:
    ratios = [ratio for one in found for ratio in one.ratios if ratio.aim is not None]
    missed = sum(ratio.verdict == "MISSED" for ratio in ratios)
    failed = ", ".join(f"{one.name} ({one.failed})" for one in found if one.failed)
    return (
        f"{len(found)} benchmarks, {sum(one.seconds for one in found) / 60:.0f} minutes; of {len(ratios)} aims "
        f"{len(ratios) - missed} are held and {missed} missed; "
        + (f"failed or not run: {failed}" if failed else "none failed")
    )


def _section(one: Found, bench: Bench) -> list[str]:
    lines = [f"## {bench.title}", "", "```sh", f"OMP_NUM_THREADS=1 {one.command}", "```", ""]
    if one.failed:
        lines += [f"**{one.failed}**" + ("; what it printed is below." if one.printed else ""), ""]
    if one.ratios:
        lines += ["| ratio | median | 10th .. 90th | aim | |", "| --- | --- | --- | --- | --- |"]
        lines += [*map(_row, one.ratios), "", f"![{bench.title}]({one.name}.png)", ""]
    lines += [f"It does not show: {bench.limits}.", ""]
    if one.seconds:
        before, after = one.busy
        lines += [
            f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(one.ended))}, commit {one.commit}, {one.seconds:.0f} s; "
            f"the machine was {before:.0f} % busy before it and {after:.0f} % after.",
            "",
            *("<details><summary>What it printed</summary>", "", "```text", one.printed.rstrip(), "```", ""),
            *("</details>", ""),
        ]
    return lines


def _row(ratio: Ratio) -> str:
    aim = "" if ratio.aim is None else f"{ratio.aim:.3g}"
    span = "counted" if ratio.low == ratio.high else f"{ratio.low:.3f} .. {ratio.high:.3f}"
    return f"| {ratio.label} | {ratio.median:.3f} | {span} | {aim} | {ratio.verdict} |"


def plot(found: Found, title: str, file: Path) -> None:
    """Its ratios, with their spread and their aims."""
    if not found.ratios:
        file.unlink(missing_ok=True)
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    ratios = list(reversed(found.ratios))
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.34 * len(ratios)), layout="constrained")
    places = range(len(ratios))
    axes.axvline(1.0, color="0.6", linewidth=1)
    low, high = [one.low for one in ratios], [one.high for one in ratios]
    axes.hlines(places, low, high, color="#4477aa", linewidth=3, alpha=0.5)
    axes.plot([one.median for one in ratios], places, "o", color="#225588")
    for place, one in enumerate(ratios):
        if one.aim is not None:
            axes.plot([one.aim], [place], "|", color="#cc3311", markersize=16, markeredgewidth=2)
    axes.set_yticks(places, [one.label for one in ratios], fontsize=8)
    if all(one.low > 0 for one in ratios):
        axes.set_xscale("log")
        least, most = min([1.0, *low]), max([1.0, *high])
        marks = (1, 2, 5) if most / least > 4 else (1, 1.2, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)  # as many as can be told apart
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=marks))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(axis="x", which="both", labelsize=8)
    figure.suptitle(f"{title}\nmedian and 10th to 90th percentile; red: the aim", fontsize=9, x=0.01, ha="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
