"""From nothing to the first picture: whole commands, ours against a script of a few lines over the stock pipeline.

  OMP_NUM_THREADS=1 python scripts/bench_first.py [--rounds 7]

Each round starts each command anew, in random order: Python, imports, loading, one picture of the included model at
64x64 and 10 steps, and the file. The model is small and in the page cache, so that what is compared is what the runner
adds to a start: its checks, hashes, folder, watch and reports. `again` is the script once more.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench.ratios import note

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "emoji-dit"
HERE = {**os.environ, "PYTHONPATH": str(ROOT)}
SCRIPT = f"""
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained({str(MODEL)!r}, local_files_only=True)
with torch.inference_mode():
    generator = torch.Generator("cpu").manual_seed(0)
    picture = pipeline("a red apple", generator=generator, height=64, width=64, num_inference_steps=10,
                       use_resolution_binning=False, clean_caption=False).images[0]
picture.save("picture.png")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    rounds = parser.parse_args().rounds
    words = [f"model.path={MODEL}", "job.prompt=a red apple", "job.images_per_prompt=1", "job.call.height=64"]
    words += ["job.call.width=64", "job.call.num_inference_steps=10", "job.call.use_resolution_binning=false"]
    commands = {
        "ours": [sys.executable, str(ROOT / "scripts" / "generate.py"), *words, "job.call.clean_caption=false"],
        "script": [sys.executable, "-c", SCRIPT],
        "again": [sys.executable, "-c", SCRIPT],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(commands), len(commands)):
            with tempfile.TemporaryDirectory(prefix="bench_first.") as folder:
                start = time.perf_counter()
                subprocess.run(commands[name], cwd=folder, env=HERE, check=True, capture_output=True)
                if number:  # the first round fills the caches
                    seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        print(f"{name:8}{statistics.median(values):7.2f} s   ({min(values):.2f} .. {max(values):.2f})")
    for name in ("ours", "again"):
        ratios = np.array(seconds[name]) / np.array(seconds["script"])
        low, median, high = np.percentile(ratios, (10, 50, 90))
        print(f"{name} / script: {median:.3f} ({low:.3f} .. {high:.3f})")
        note(f"first picture: {name} / script", ratios)


if __name__ == "__main__":
    main()
