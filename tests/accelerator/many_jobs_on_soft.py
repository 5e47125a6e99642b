"""scripts/generate.py with one list of arguments after the other, in one world, with the software accelerator.

argv: a file, a JSON list of arguments a line. Exits with the first code that is not 0, and with 9 where an access was
unordered.
"""

import gc
import importlib.util
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

import runner.world
from tests.accelerator import soft

GENERATE = Path(__file__).resolve().parents[2] / "scripts" / "generate.py"


def main() -> int:
    soft.register()
    soft.have_inference_mode()
    spec = importlib.util.spec_from_file_location("generate", GENERATE)
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    with runner.world.joined_world() as world:
        runner.world.joined_world = lambda *_: nullcontext(world)  # type: ignore[assignment]
        for line in Path(sys.argv[1]).read_text().splitlines():
            sys.argv[1:] = json.loads(line)
            gc.collect()  # of the job before, whose pipeline and hooks hold each other
            torch.accelerator.reset_peak_memory_stats()
            if code := generate.main():
                return int(code)
            if found := soft.reports():
                print(f"{len(found)} unordered accesses; the first: {found[0]}", file=sys.stderr)
                return 9
    return 0


if __name__ == "__main__":
    sys.exit(main())
