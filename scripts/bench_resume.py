"""What it costs a job that it is killed and goes on: whole commands, ours against a script over the stock pipeline.

  OMP_NUM_THREADS=1 python scripts/bench_resume.py [--rounds 3] [--pictures 8]

The included model makes --pictures pictures at 64x64. Each round runs each arm once, in random order:

  in one go          scripts/generate.py, left alone
  killed             the same, killed (SIGKILL) when half of its pictures are recorded, and started once more
  script             a loop over the stock pipeline, which writes each picture when it is made
  script, killed     the same, killed when half of its pictures are there, and started once more: it begins anew

What a kill costs beside a second start are the requests that were under way; pictures that were made twice are counted.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench.ratios import note

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "emoji-dit"
HERE = {**os.environ, "PYTHONPATH": str(ROOT)}
SCRIPT = f"""
import sys
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained({str(MODEL)!r}, local_files_only=True)
for seed in range(int(sys.argv[1])):
    with torch.inference_mode():
        generator = torch.Generator("cpu").manual_seed(seed)
        picture = pipeline("a red apple", generator=generator, height=64, width=64, num_inference_steps=20,
                           use_resolution_binning=False, clean_caption=False).images[0]
    picture.save(f"{{seed}}.png")
    with open("made.txt", "a") as made:
        made.write(f"{{seed}}\\n")
"""
ARMS = ("in one go", "killed", "script", "script, killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--pictures", type=int, default=8, help="of a job (default: %(default)s)")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    twice: dict[str, list[int]] = {arm: [] for arm in ARMS}
    for number in range(options.rounds):
        for arm in random.Random(number).sample(ARMS, len(ARMS)):
            with tempfile.TemporaryDirectory(prefix="bench_resume.") as folder:
                took, extra = _run(arm, Path(folder), options.pictures)
            seconds[arm].append(took)
            twice[arm].append(extra)
    for arm in ARMS:
        low, middle, high = min(seconds[arm]), statistics.median(seconds[arm]), max(seconds[arm])
        print(f"{arm:16}{middle:7.2f} s   ({low:.2f} .. {high:.2f}), pictures made twice: {twice[arm]}")
    for top, bottom in (("killed", "in one go"), ("script, killed", "script"), ("killed", "script, killed")):
        ratios = np.array(seconds[top]) / np.array(seconds[bottom])
        low, median, high = np.percentile(ratios, (10, 50, 90))
        print(f"{top} / {bottom}: {median:.3f} ({low:.3f} .. {high:.3f})")
        note(f"a job of {options.pictures} pictures: {top} / {bottom}", ratios)
    note("pictures made twice by a job that was killed once", [max(twice["killed"])], 0)


def _run(arm: str, folder: Path, pictures: int) -> tuple[float, int]:
    """Seconds until all pictures are there, and how many were made twice."""
    words, lines = (_script if "script" in arm else _ours)(folder, pictures)
    start = time.perf_counter()
    if "killed" in arm:
        _kill(words, folder, lambda: lines() >= pictures // 2)
    subprocess.run(words, cwd=folder, env=HERE, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    return seconds, lines() - pictures


def _ours(folder: Path, pictures: int) -> tuple[list[str], Callable[[], int]]:
    words = [f"model.path={MODEL}", "job.prompt=a red apple", f"job.images_per_prompt={pictures}", "job.output=out"]
    words += ["job.call.height=64", "job.call.width=64", "job.call.num_inference_steps=20"]
    words += ["job.call.use_resolution_binning=false", "job.call.clean_caption=false"]
    manifest = folder / "out" / "manifest.jsonl"
    return [sys.executable, str(ROOT / "scripts" / "generate.py"), *words], lambda: _count(manifest)


def _script(folder: Path, pictures: int) -> tuple[list[str], Callable[[], int]]:
    return [sys.executable, "-c", SCRIPT, str(pictures)], lambda: _count(folder / "made.txt")


def _count(file: Path) -> int:
    """Whole lines that are there."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _kill(words: list[str], folder: Path, is_time: Callable[[], bool]) -> None:
    process = subprocess.Popen(words, cwd=folder, env=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not is_time():
        if process.poll() is not None:
            raise SystemExit(f"it ended with {process.returncode} before it was killed: {' '.join(words[:2])}")
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    main()
