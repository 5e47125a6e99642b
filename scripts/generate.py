"""Prompts to pictures: torchrun --standalone --nproc-per-node N scripts/generate.py [CONFIG ...] [key=value ...]"""

import argparse
import os
import socket
import sys
from collections.abc import MutableMapping, Sequence
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

from runner.config import describe, load_config, to_yaml
from runner.errors import ExitCode, JobFault, UserError
from runner.health.stderr import BestEffort, say
from runner.health.torchrun import end_with_agent
from runner.reading.values import shown

DEFAULT = Path(__file__).resolve().parent.parent / "configs" / "generate.yaml"
VALUES = """values:
  A text (job.prompt, job.output, every path) is taken as it is typed, with #, &, : and ${...}; of "..." and '...' the
  inside is, by YAML's rules. job.prompt also takes a list, "[a fox, a flat burger]", where a text that holds # & * or
  a colon is quoted, and a class label, 207 (the text 207 is '"207"'). job.call.ARGUMENT takes null, true, a number, a
  list or a mapping where it is written as one, and any other text as it is typed. null unsets a key without a default.
  In a YAML file ${key} stands for the value of another key, and \\${ for ${ itself."""


class Parser(argparse.ArgumentParser):
    """Mistakes are UserErrors: one line, told once and not by every rank."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; settings are key=value (--help lists them all)")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    width = max(len(key) for key, _, _ in describe())
    keys = "\n".join(f"  {key:{width}}  {text}" + (f" [{value}]" if value else "") for key, value, text in describe())
    parser = Parser(
        prog="generate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"keys, with their defaults:\n{keys}\n\n{VALUES}\n\n"
        "exit codes: 0 all made, 1 some requests failed (see failures.jsonl), 2 the command or its input is wrong,\n"
        "  3 stopped with work left, 4 a fault ended the job (see run.json); after 3 and 4 the same command goes on;\n"
        "  5 all was made, and --verify found other pixels than the stock pipeline's\n"
        'example: generate.py job.prompt="[a rocket, a flat fox]" job.seed=7 job.output=outputs/mine',
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key=value",
        help=f"YAML recipes, each laid over the one before [{DEFAULT.name}]; keys",
    )
    parser.add_argument("--print-config", action="store_true", help="print the merged config and stop")
    parser.add_argument(
        "--explain", action="store_true", help="load and place, print each component's mode and the reason, and stop"
    )
    parser.add_argument(
        "--verify",
        type=_number_of_requests,
        default=0,
        metavar="N",
        help="when all is made, make N of the requests again with the stock pipeline, on rank 0, and say what is equal",
    )
    return parser.parse_intermixed_args(argv)


def _number_of_requests(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no number of requests; give 1 or more")
    return int(text)


def config_files(words: Sequence[str]) -> list[Path]:
    """The words that are no key=value, else the default recipe."""
    files = [word for word in words if "=" not in word]
    for word in files:
        if not os.path.lexists(word):
            raise UserError(
                f"{shown(word)} is no config file (see configs/), and no key=value such as job.seed=7; "
                'a text with spaces is quoted, job.prompt="a red fox"'
            )
    return list(map(Path, files)) or [DEFAULT]


def main(argv: Sequence[str] | None = None) -> int:
    sys.stderr = BestEffort(sys.stderr)  # type: ignore[assignment]
    try:
        end_with_agent()
        return _main(parse(argv))
    except UserError as error:
        if _rank() == 0:
            say(f"error: {error}")
        return ExitCode.WRONG
    except JobFault as error:
        say(f"fault: rank {_rank()} on {socket.gethostname()}, start: {error}")
        return ExitCode.FAULT
    except KeyboardInterrupt:
        say("stopped before the job began")
        return ExitCode.STOPPED
    except BrokenPipeError:  # of stdout: who reads the table or the config has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE


def _main(arguments: argparse.Namespace) -> int:
    words = arguments.words
    base, *over = config_files(words)
    config = load_config(base, [word for word in words if "=" in word], over)
    if arguments.print_config:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # in any locale: so it is read again
        print(to_yaml(config), end="", flush=True)
        return ExitCode.DONE
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    set_allocator(os.environ)
    leave_ends_to_the_watch(os.environ)
    # torch and diffusers take seconds to import; --help should not.
    from runner.run import explain, run
    from runner.world import joined_world

    with joined_world(config.job.timeout_seconds) as world:
        return explain(config, world) if arguments.explain else run(config, world, arguments.verify)


def set_allocator(environment: MutableMapping[str, str]) -> None:
    """What torch's allocators read when they start; whoever set them decides instead.

    Segments that grow: rings of blocks come and go, and would leave holes that no larger ring fits into. From torch
    2.13 on, page-locked memory above 1 MiB is not rounded up to a power of two: FSDP's slices are of any size.
    """
    if any(f"PYTORCH_{name}ALLOC_CONF" in environment for name in ("", "CUDA_", "HIP_")):
        return
    settings = ["expandable_segments:True"]
    if tuple(map(int, version("torch").split(".")[:2])) >= (2, 13):
        settings.append("pinned_max_round_threshold_mb:1")
    environment["PYTORCH_ALLOC_CONF"] = ",".join(settings)


def leave_ends_to_the_watch(environment: MutableMapping[str, str]) -> None:
    """Over NCCL torch has a watchdog, which ends the process when a connection breaks or a collective takes long, and a
    monitor that ends it when the watchdog stands still: before our watch has said which rank was lost, and where. Both
    are off, unless whoever started this set them."""
    environment.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    environment.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")


def _rank() -> int:
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


if __name__ == "__main__":
    sys.exit(main())
