"""Turn prompts into pictures: torchrun --standalone --nproc-per-node N scripts/generate.py [CONFIG] [key=value ...]"""

import argparse
import os
import socket
import sys
from pathlib import Path

from runner.config import describe, load_config, to_yaml
from runner.errors import ExitCode, JobFault, UserError
from runner.health.stderr import BestEffort, say
from runner.health.torchrun import end_with_agent

DEFAULT = Path(__file__).resolve().parent.parent / "configs" / "generate.yaml"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    width = max(len(key) for key, _, _ in describe())
    keys = "\n".join(f"  {key:{width}}  {text}" + (f" [{value}]" if value else "") for key, value, text in describe())
    parser = argparse.ArgumentParser(
        prog="generate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"keys, with their defaults:\n{keys}\n\n"
        "exit codes: 0 all made, 1 some requests failed (see failures.jsonl), 2 the command or its input is wrong,\n"
        "  3 stopped with work left, 4 a fault ended the job (see run.json); after 3 and 4 the same command goes on\n"
        'example: generate.py job.prompt="[a rocket, a flat fox]" job.seed=7 job.output=outputs/mine',
    )
    parser.add_argument("words", nargs="*", metavar="CONFIG | key=value", help=f"a YAML recipe [{DEFAULT.name}]; keys")
    parser.add_argument("--print-config", action="store_true", help="print the merged config and stop")
    parser.add_argument(
        "--explain", action="store_true", help="load and place, print each component's mode and the reason, and stop"
    )
    return parser.parse_intermixed_args(argv)


def main() -> int:
    sys.stderr = BestEffort(sys.stderr)  # type: ignore[assignment]
    try:
        end_with_agent()
        return _main(parse())
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
    files = [word for word in arguments.words if "=" not in word]
    if len(files) > 1:
        raise UserError(f"one config file at most, not {', '.join(files)}; settings are key=value")
    file = Path(files[0]) if files else DEFAULT
    config = load_config(file, [word for word in arguments.words if "=" in word])
    if arguments.print_config:
        print(to_yaml(config), end="", flush=True)
        return ExitCode.DONE
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # torch and diffusers take seconds to import; --help should not.
    from runner.run import explain, run
    from runner.world import joined_world

    with joined_world(config.job.timeout_seconds) as world:
        return explain(config, world) if arguments.explain else run(config, world)


def _rank() -> int:
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


if __name__ == "__main__":
    sys.exit(main())
