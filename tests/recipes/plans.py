"""Plans of real models for typical machines, the table of docs/planning.md: `python -m tests.recipes.plans`."""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from runner.components.directory import directory_of
from runner.config import load_config
from runner.job.first_request import first_request
from runner.plan.machine import GIB, Machine, Rates, size
from runner.plan.model import Model, model_of
from runner.plan.needs import needs
from runner.plan.rehearsal import rehearse
from runner.plan.search import search
from runner.plan.work import Workload
from tests.recipes import directories
from tests.recipes.recipes import FOLDER

MODELS = ("flux1-dev", "qwen-image", "wan2.1-t2v-14b", "hunyuanvideo1.5-t2v", "ltx-2")
# GPUs, GiB of each, GiB of the host.
MACHINES = {"8 x 80 GiB": (8, 80, 512), "1 x 24 GiB": (1, 24, 64), "2 x 16 GiB": (2, 16, 64)}
HEAD = """| recipe | machine | the quickest placement that fits | peak of a GPU | host | s a request |
| --- | --- | --- | --- | --- | --- |"""


def planned(recipe: str, folder: Path) -> tuple[Model, Workload, float]:
    """With the processor's seconds that it took."""
    directories.write(recipe, folder)
    config = load_config(FOLDER / f"{recipe}.yaml", [f"model.path={folder}"])
    start = time.process_time()
    directory = directory_of(config, weights=False)
    model = model_of(directory, config)
    workload = rehearse(model, directory, *first_request(config.job, directory.pipeline))
    return model, workload, time.process_time() - start


def rows(recipe: str, folder: Path) -> Iterator[str]:
    model, workload, seconds = planned(recipe, folder)
    print(f"{recipe}: rehearsed in {seconds:.1f} s", file=sys.stderr)
    if workload.unknown:
        raise SystemExit(f"{recipe}: {workload.unknown}")
    for name, (gpus, memory, host) in MACHINES.items():
        machine = Machine(gpus, 1, memory * GIB, host * GIB, reserved=GIB, process=GIB)
        found = search(model, workload, machine, Rates(), shard=gpus)
        cells = ["nothing", "-", "-", "-"]
        if found:
            needed = needs(found[0].parts, machine)
            words = " ".join(found[0].words())
            cells = [f"`{words}`" if words else "all stays", size(needed.device), size(needed.host)]
            cells.append(f"{found[0].seconds:.0f}")
        yield f"| `{recipe}.yaml` | {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print(HEAD)
    for one in sys.argv[1:] or MODELS:
        with tempfile.TemporaryDirectory() as made:
            for row in rows(one, Path(made)):
                print(row, flush=True)
