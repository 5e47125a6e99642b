"""A list of unlike requests on several ranks: how long it takes, and how long the ranks had nothing to do.

  OMP_NUM_THREADS=1 python scripts/bench_ragged.py [--checkouts . ../earlier] [--rounds 3]

Every other request has ten times the steps of the one before. Each checkout of the project makes the same list with its
own scripts/generate.py, in turn. `least`: what the ranks would take if none ever waited, by each request's seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MODEL = Path(__file__).resolve().parent.parent / "models" / "emoji-dit"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkouts", type=Path, nargs="+", default=[Path()], help="(default: this one)")
    parser.add_argument("--ranks", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_ragged.") as folder:
        prompts = Path(folder) / "prompts.jsonl"
        rows = [{"prompt": "a rocket", "seed": n, "num_inference_steps": 4 if n % 2 else 40}
                for n in range(options.requests)]  # fmt: skip
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found: dict[Path, list[tuple[float, float]]] = {checkout: [] for checkout in options.checkouts}
        for number in range(options.rounds):
            for index, checkout in enumerate(options.checkouts):
                output = Path(folder) / f"{index}-{number}"
                found[checkout].append(one_run(checkout.resolve(), prompts, output, options.ranks))
        for checkout, runs in found.items():
            seconds, least = (statistics.median(column) for column in zip(*runs, strict=True))
            print(f"{checkout!s:24} {seconds:6.1f} s   {seconds / least:.2f} of the least, {least:.1f} s")


def one_run(checkout: Path, prompts: Path, output: Path, ranks: int) -> tuple[float, float]:
    """Seconds that the job took to generate, and the least that it could have taken."""
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
         str(checkout / "scripts" / "generate.py"), f"model.path={MODEL}", f"job.prompts={prompts}",
         "job.images_per_prompt=1", f"job.output={output}"],
        cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, check=True, capture_output=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    seconds = json.loads((output / "run.json").read_text())["seconds"]["generate"]
    return seconds, sum(line["seconds"] for line in lines) / ranks


if __name__ == "__main__":
    main()
