"""What a job would take, before it runs: python scripts/plan.py [CONFIG ...] [key=value ...] [--gpus 8] [--nodes 2]

Per component and rank, bytes on the device and on the host; what moves at a step and how long that takes; what fits,
and what would. No GPU is needed, and no weights: configurations are enough, and headers where the files are there.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.config import RunConfig, load_config
from runner.errors import ExitCode, UserError
from runner.health.stderr import say
from scripts.generate import Parser, config_files

RATES = {
    "flops": "FLOP/s of a rank in the model's dtype",
    "link": "bytes/s of a rank's link to its host",
    "disk": "bytes/s of a node's disk",
    "within": "bytes/s between the ranks of a node",
    "between": "bytes/s of a rank between nodes",
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="plan.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit codes: 0 it fits, 1 it does not, 2 the command or its input is wrong\n"
        "example: plan.py configs/models/flux1-dev.yaml model.path=/models/FLUX.1-dev --gpus 8 --nodes 2 "
        "--device-memory 80GiB --host-memory 512GiB",
    )
    parser.add_argument("words", nargs="*", metavar="CONFIG | key=value", help="as generate.py takes them")
    parser.add_argument("--gpus", type=int, default=1, help="of each node; a rank on each [1]")
    parser.add_argument("--nodes", type=int, default=1, help="[1]")
    parser.add_argument(
        "--device-memory", default="80GiB", help="of each GPU; host where ranks compute on the CPU [80GiB]"
    )
    parser.add_argument("--host-memory", default="512GiB", help="of each node [512GiB]")
    parser.add_argument("--best", action="store_true", help="search placements, groups and meshes for throughput")
    parser.add_argument("--latency", action="store_true", help="with --best: for the time of one request instead")
    for name, value in RATES.items():
        parser.add_argument(f"--{name}", type=float, metavar="NUMBER", help=f"{value} (assumed: see docs/planning.md)")
    parser.add_argument("--bandwidths", type=Path, metavar="FILE", help="speeds that --calibrate wrote")
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="measure the speeds here (under torchrun: of its ranks)",
    )
    parser.add_argument("--reserved", default="1GiB", help="of each GPU: its context, libraries, workspaces [1GiB]")
    parser.add_argument("--process", default="1GiB", help="of each node for each rank: Python and libraries [1GiB]")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return _main(parse(argv))
    except UserError as error:
        say(f"error: {error}")
        return ExitCode.WRONG
    except BrokenPipeError:  # of stdout: who reads the table has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE


def _main(arguments: argparse.Namespace) -> int:
    words = arguments.words
    base, *over = config_files(words)
    config = load_config(base, [word for word in words if "=" in word], over)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # torch and diffusers take seconds to import; --help should not.
    from runner.plan.calibrate import read_rates

    if arguments.calibrate is not None:
        return _calibrate(config, arguments.calibrate)
    from runner.components.context_fit import context_that_fits
    from runner.components.directory import check_placements, directory_of
    from runner.job.first_request import first_request
    from runner.pipeline.separate_calls import separate_calls
    from runner.plan.best import shared_out, told, ways
    from runner.plan.machine import Machine, parse_bytes
    from runner.plan.model import model_of
    from runner.plan.planning import planned
    from runner.plan.rehearsal import rehearse
    from runner.plan.table import memory_table, seconds_table

    if arguments.gpus < 1 or arguments.nodes < 1:
        raise UserError("--gpus and --nodes are 1 or more")
    on_host = arguments.device_memory == "host"
    machine = Machine(
        arguments.gpus,
        arguments.nodes,
        0 if on_host else parse_bytes(arguments.device_memory),
        parse_bytes(arguments.host_memory),
        is_host=on_host,
        reserved=0 if on_host else parse_bytes(arguments.reserved),
        process=parse_bytes(arguments.process),
    )
    directory = directory_of(config, weights=False)
    check_placements(directory, config)
    model = model_of(directory, config)
    workload = rehearse(model, directory, *first_request(config.job, directory.pipeline))
    stated = {name: getattr(arguments, name) for name in RATES if getattr(arguments, name) is not None}
    if wrong := [name for name, value in stated.items() if value <= 0]:
        raise UserError(f"--{wrong[0]} is above 0")
    rates = read_rates(arguments.bandwidths, stated)
    if arguments.best:
        separate = separate_calls(directory.pipeline, directory.modules)
        contexts = context_that_fits(directory, machine.ranks, compiled=bool(config.execution.compile))
        found = ways(model, workload, machine, rates, separate=separate, contexts=contexts, latency=arguments.latency)
        print(told(found, latency=arguments.latency))
        return ExitCode.DONE if found else ExitCode.FAILED
    guidance, context = (size if isinstance(size, int) else 1 for size in (config.mesh.guidance, config.mesh.context))
    workload = shared_out(model, workload, guidance, context)
    plan = planned(model, config, workload, machine, rates)
    print(memory_table(plan.parts, plan.needed, machine))
    print("\n" + seconds_table(plan.parts, workload, plan.rates, machine, plan.group))
    print(f"speeds {rates.source}")
    if workload.unknown:
        print(f"note: activations and FLOPs are not known: {workload.unknown}")
    for note in model.notes:
        print(f"note: {note}")
    if plan.fits:
        print("it fits")
        return ExitCode.DONE
    print(f"it does not fit: {'; '.join(plan.short)}\n{plan.fix()}")
    return ExitCode.FAILED


def _calibrate(config: RunConfig, file: Path) -> int:
    import torch

    from runner.components.directory import directory_of
    from runner.plan.calibrate import keep, measured
    from runner.world import joined_world

    with joined_world(config.job.timeout_seconds) as world:
        directory = world.agreed(lambda: directory_of(config))
        files = [path for name in directory.modules for path in directory.folder(name).glob("*.safetensors")]
        dtype = getattr(torch, config.model.dtype.value)
        found = measured(files, dtype, world)
        if world.rank == 0:
            keep(file, found, dtype, world.device)
            for name, value in found.items():
                print(f"{name}: {value:.3g} {RATES[name]}")
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
