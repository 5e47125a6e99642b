"""A case, made by the stock pipeline and by the runner in each placement, on the two ranks of a test world.

In the arm "together" it is made twice in a group, of two seeds: the calls take turns at the blocks that come from disk.

The runner's side is generate.py's: a configuration file and a prompt file are read, the directory is opened, the
request is made, and its output is a file with a line in the manifest. The two arms that need one rank run beside each
other, one on each.
"""

import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import diffusers
import numpy as np
import torch
import torch.distributed as dist
import yaml

from runner.calls.randomness import set_global_generators
from runner.config import load_config
from runner.errors import UserError
from runner.run import run
from runner.world import World
from tests.census.case import Case, File, replaced
from tests.census.cases import CASES
from tests.census.files import read_as_stock, write_file
from tests.distributed.placed import joined
from tests.ranks import World as TestWorld
from tests.ranks import on_ranks
from tests.tiny.oracle import load_stock

SEED = 3
SEEDS = (SEED, SEED + 1)  # of a group; alone it is made with the first
ARMS = {
    "resident": [],
    "sharded": ["placement.default.share=shard"],
    "disk": ["placement.default.rest=disk"],
    "together": ["placement.default.rest=disk", "job.group=2", "job.images_per_prompt=2"],
}


@on_ranks(2)
def make_case(world: TestWorld, name: str) -> None:
    """Writes what became of each arm, and of the stock pipeline, into the world's folder: see `results`."""
    case, folder = CASES[name], world.tmp_path
    alone = World(0, 1, world.device)
    if world.rank == 0:
        _recorded(folder, "build", lambda: write_case(case, folder))
    dist.barrier()
    if not (folder / "model" / "model_index.json").exists():
        return
    if world.rank == 0:
        _recorded(folder, "stock", lambda: save_stock_outputs(case, folder))
        _recorded(folder, "resident", lambda: _run("resident", case, folder, alone))
    else:
        _recorded(folder, "disk", lambda: _run("disk", case, folder, alone))
        _recorded(folder, "together", lambda: _run("together", case, folder, alone))
    dist.barrier()
    _recorded(folder, "sharded" if world.rank == 0 else "beside", lambda: _run("sharded", case, folder, joined(world)))


def results(folder: Path) -> dict[str, str]:
    """What became of each arm: "" where it gave the stock pipeline's bits, else what went wrong."""
    for step in ("build", "stock"):
        if error := _error(folder, step):
            return dict.fromkeys(ARMS, f"{step}: {error}")
    wanted = {}
    for seed in SEEDS:
        with np.load(folder / f"stock-{seed}.npz") as stock:
            wanted[seed] = dict(stock)
        for field, values in wanted[seed].items():
            if not np.isfinite(values).all() or values.std() < 1e-3:
                return dict.fromkeys(ARMS, f"stock: no {field} that could tell anything: deviates {values.std():.2g}")
    return {arm: _error(folder, arm) or _difference(folder / arm, wanted) for arm in ARMS}


def seconds(folder: Path) -> dict[str, float]:
    """How long each step took, by its name."""
    return {path.stem: json.loads(path.read_text())["seconds"] for path in folder.glob("*.json")}


def _recorded(folder: Path, step: str, action: Callable[[], Any]) -> None:
    start, error = perf_counter(), ""
    try:
        action()
    except (Exception, SystemExit) as raised:  # whatever it is, it is this case's result, and ends no other one
        error = f"{type(raised).__name__}: {raised}"
        if not isinstance(raised, UserError):
            (folder / f"{step}.traceback").write_text(traceback.format_exc())
    text = json.dumps({"error": error, "seconds": round(perf_counter() - start, 2)})
    (folder / f"{step}.json").write_text(text)


def _error(folder: Path, step: str) -> str:
    file = folder / f"{step}.json"
    return json.loads(file.read_text())["error"] if file.exists() else "it did not come to an end"


def write_case(case: Case, folder: Path) -> None:
    """The model's directory, the inputs, and what a user would write to have the one made from the other."""
    pipeline = getattr(diffusers, case.pipeline)(**case.parts())
    pipeline.save_pretrained(folder / "draft")
    for name in case.files:
        write_file(folder, name)
    with_files = {key: value for key, value in case.call.items() if replaced(value, lambda file: None) != value}
    line = replaced(with_files, File.written)
    line |= {} if case.prompt is None else {"class_labels" if isinstance(case.prompt, int) else "prompt": case.prompt}
    (folder / "prompts.jsonl").write_text(json.dumps(line) + "\n")
    call = {key: value for key, value in case.call.items() if key not in with_files}
    job = {"prompts": str(folder / "prompts.jsonl"), "seed": SEED, "format": "npy", "call": replaced(call, str)}
    model = {"path": str(folder / "model"), "dtype": case.dtype}
    (folder / "job.yaml").write_text(yaml.safe_dump({"model": model, "job": job}))
    os.rename(folder / "draft", folder / "model")


def save_stock_outputs(case: Case, folder: Path) -> None:
    for seed, output in zip(SEEDS, stock_outputs(case, folder, SEEDS), strict=True):
        np.savez(folder / f"stock-{seed}.npz", **output)


def stock_outputs(case: Case, folder: Path, seeds: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """What stock diffusers makes of the same directory and files: the numbers of each field of its output, in a row."""
    pipeline = load_stock(folder / "model", getattr(torch, case.dtype))
    case.prepare(pipeline)
    return [_stock_output(pipeline, case, folder, seed) for seed in seeds]


def _stock_output(pipeline: Any, case: Case, folder: Path, seed: int) -> dict[str, np.ndarray]:
    def read(file: File) -> Any:
        return read_as_stock(folder / file.name, file.mode)

    call = {key: case.stock.get(key, lambda given: given)(replaced(value, read)) for key, value in case.call.items()}
    if case.prompt is not None:
        call["class_labels" if isinstance(case.prompt, int) else "prompt"] = (
            [case.prompt] if isinstance(case.prompt, int) else case.prompt
        )
    set_global_generators(seed, torch.device("cpu"))  # some schedulers and autoencoders draw from these
    with torch.inference_mode():
        output = pipeline(**call, generator=torch.Generator("cpu").manual_seed(seed), output_type="np")
    return {field: numbers for field, value in output.items() if (numbers := _in_a_row(value)) is not None}


def _in_a_row(value: Any) -> np.ndarray | None:
    """The numbers of an array, a tensor or a list of them; None of what holds none."""
    if isinstance(value, list | tuple):
        rows = [row for one in value if (row := _in_a_row(one)) is not None]
        return np.concatenate(rows) if rows and len(rows) == len(value) else None
    if isinstance(value, torch.Tensor):
        value = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    return value.ravel() if isinstance(value, np.ndarray) else None


def _run(arm: str, case: Case, folder: Path, world: World) -> None:
    """As scripts/generate.py does, between joining the world and leaving it."""
    config = load_config(folder / "job.yaml", [f"job.output={folder / arm}", *ARMS[arm], *case.settings])
    if (code := run(config, world)) != 0:
        failures = folder / arm / "failures.jsonl"
        failure = json.loads(failures.read_text().splitlines()[-1]) if failures.exists() else {}
        (folder / f"{arm}.traceback").write_text(failure.get("traceback", ""))
        raise RuntimeError(f"exit code {code}: {failure.get('error')}: {failure.get('message')}")


def _difference(output: Path, wanted: Mapping[int, Mapping[str, np.ndarray]]) -> str:
    """Of what was made with each seed."""
    lines = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    seeds = SEEDS if output.name == "together" else SEEDS[:1]
    if sorted(line["seed"] for line in lines) != list(seeds):
        return f"made with seeds {[line['seed'] for line in lines]}"
    return next(filter(None, (line_differs(output, line, wanted[line["seed"]]) for line in lines)), "")


def line_differs(output: Path, line: Mapping[str, Any], wanted: Mapping[str, np.ndarray]) -> str:
    """Of the files of each field, which may be several."""
    if unknown := {file["field"] for file in line["files"]} ^ set(wanted):
        return f"{sorted(unknown)} is a field of one of both, stock and the manifest"
    for field, values in wanted.items():
        files = [np.load(output / file["file"]).ravel() for file in line["files"] if file["field"] == field]
        made = np.concatenate(files)
        if made.shape != values.shape or made.dtype != values.dtype:
            return f"{field}: {made.size} values of {made.dtype}, and stock {values.size} of {values.dtype}"
        if not np.array_equal(made, values):
            return f"{field}, seed {line['seed']}: other bits than stock, by {np.abs(made - values).max():.2g}"
    return ""
