"""All benchmarks, one after the other in one session, and the table of what they found: benchmarks/RESULTS.md.

  make bench                                        (22 minutes on two quiet cores, 40 at most)
  python scripts/bench_all.py --parts first overhead
  python scripts/bench_all.py --go-on               after it was interrupted: what is left of it
  python scripts/bench_all.py --dry                 each as short as it can be, to see whether all of it works

Each is a command of its own, as it stands in the table, with one thread a rank. The table, a plot, and a file of what
was found are written after each. It is given up after twice its minutes; one that would end after --minutes is not run:
the order is that of their worth. What failed, was given up or not run stands in the table as that. Leave the machine
alone meanwhile: how busy it was before and after each is in the table too.
"""

import argparse
import importlib.util
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import found as kept
from bench.benches import BENCHES, Bench
from bench.found import ROOT, Found
from bench.results_page import plot, results


def main() -> None:
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended early; --go-on runs what is left"))
    folder = options.output or (Path(tempfile.mkdtemp(prefix="bench_dry.")) if options.dry else ROOT / "benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [bench for bench in BENCHES if bench.name in options.parts]
    if options.go_on:
        chosen = left(chosen, kept.load(folder, BENCHES))
    print(announced(chosen, options.minutes), flush=True)
    failed = run_all(chosen, folder, options.minutes, dry=options.dry)
    print(folder / "RESULTS.md")
    if failed:
        raise SystemExit(f"failed or not run: {', '.join(failed)}")


def left(benches: Sequence[Bench], found: Sequence[Found]) -> list[Bench]:
    """Those that are not among what was found at this commit, or failed."""
    now = kept.commit()
    done = {one.name for one in found if one.commit == now and not one.failed}
    return [bench for bench in benches if bench.name not in done]


def announced(benches: Sequence[Bench], minutes: float) -> str:
    rows = [f"  {bench.name:14}{bench.minutes:5.1f} min   {bench.title}" for bench in benches]
    total = sum(bench.minutes for bench in benches)
    return "\n".join([f"{len(benches)} benchmarks, about {total:.0f} minutes of {minutes:g}:", *rows])


def run_all(benches: Sequence[Bench], folder: Path, minutes: float, *, dry: bool = False) -> list[str]:
    """The names of those that failed. All that was ever found in the folder is in the table."""
    end, names = time.monotonic() + 60 * minutes, {bench.name: bench for bench in (*BENCHES, *benches)}
    for bench in benches:
        print(f"{time.strftime('%H:%M:%S')} {bench.title}: {bench.command}", flush=True)
        seconds = end - time.monotonic()
        if seconds < 60 * bench.minutes and not dry:
            one = kept.not_run(
                bench, f"{seconds / 60:.1f} of {minutes:g} minutes were left, and it takes {bench.minutes:g}"
            )
        else:
            one = kept.run(bench, min(120 * bench.minutes, seconds), dry=dry)
        one.save(folder)
        (folder / "RESULTS.md").write_text(results(kept.load(folder, names.values()), names, dry=dry))
        plot(one, bench.title, folder / f"{bench.name}.png")
        print(f"  {one.failed or f'{one.seconds:.0f} s, {len(one.ratios)} ratios'}", flush=True)
    return [one.name for one in kept.load(folder, benches) if one.failed]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [bench.name for bench in BENCHES]
    parts = f"of {', '.join(names)} (default: all)"
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART", help=parts)
    parser.add_argument("--go-on", action="store_true", help="without those found already at this commit")
    parser.add_argument("--dry", action="store_true", help="each as short as it can be; the figures mean nothing")
    parser.add_argument("--minutes", type=float, default=40, help="of all together (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/, and with --dry a temporary folder")
    options = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("the plots need matplotlib: pip install -c constraints.txt -e '.[dev]'")
    return options


if __name__ == "__main__":
    main()
