"""What `make bench` runs, the worth most first: where time runs out, it is the last ones that are not run."""

from dataclasses import dataclass

_RANKS = "torchrun --standalone --nproc-per-node 2"


@dataclass(frozen=True)
class Bench:
    """`minutes` it takes on two quiet cores; `limits`: what its figures do not show; `dry`: words after its command
    that make it as short as it can be, to see whether it works."""

    name: str
    title: str
    command: str
    minutes: float
    limits: str
    dry: str = ""


BENCHES = (
    Bench(
        "handwritten", "Sharding, against FSDP2 by hand and accelerate's",
        f"{_RANKS} scripts/bench_sharding.py --part handwritten --rounds 0.7", 4,
        "gathers over shared memory, no network; accelerate's wrapping is called by its function, for on CPUs its "
        "Accelerator makes DDP", "--rounds 0.02",
    ),
    Bench(
        "offload", "Offload, against diffusers' group offload and accelerate's",
        "python scripts/bench_offload.py --rounds 3 --minutes 5", 7,
        "one model of 416M parameters, one disk; compute is a CPU's, and so is its ratio to transfer",
        "--rounds 1 --minutes 1 --tries 1 --patience 0 --steps 1",
    ),
    Bench(
        "group", "Groups: one pass over the weights for several requests",
        "python scripts/bench_group.py --case 3x --case prompts --case sharded", 4,
        "the reader is slowed, not the disk; models of one width; on a GPU compute and link are others", "--quick",
    ),
    Bench(
        "group-peers", "Groups from a cold disk, against diffusers' group offload and accelerate's",
        "python scripts/bench_group.py --case cold", 2,
        "a small model, and a disk that is not much slower than computing it on a CPU", "--quick",
    ),
    Bench(
        "load", "Loading sharded, against three other ways",
        f"{_RANKS} scripts/bench_sharding.py --part load --rounds 0.5", 2.5,
        "files in the page cache; a parallel file system is not here", "--rounds 0.25",
    ),
    Bench(
        "guidance", "Guidance over two ranks, against serial", f"{_RANKS} scripts/bench_team.py --part guidance", 1.5,
        "exchanges over shared memory; a small model, and two calls a step", "--rounds 0.2",
    ),
    Bench(
        "context", "Tokens shared out by two ranks, against serial",
        f"{_RANKS} scripts/bench_team.py --part context", 1.5,
        "exchanges over shared memory; small models of 1,024 tokens", "--rounds 0.1",
    ),
    Bench(
        "overhead", "What the runner adds to a request", "python scripts/bench_overhead.py --calls 60", 1.5,
        "a request that is all dispatch; one that computes for seconds hides what is added", "--calls 3 --warmup 1",
    ),
    Bench(
        "first", "From nothing to the first picture", "python scripts/bench_first.py --rounds 5", 3,
        "a small model in the page cache: the seconds that a large one takes to load are the same for both",
        "--rounds 1",
    ),
    Bench(
        "modes", "Inference mode where weights are sharded",
        f"{_RANKS} scripts/bench_sharding.py --part modes --rounds 0.7", 3,
        "gloo on a CPU: launch costs of a GPU are others", "--rounds 0.02",
    ),
    Bench(
        "node", "Loading whole, and host memory, four ranks of a node",
        "python scripts/bench_resident.py --rounds 2", 2.5,
        "host memory; on a GPU the copy to the device is beside it", "--rounds 1 --ranks 2",
    ),
    Bench(
        "resume", "A job that was killed and goes on", "python scripts/bench_resume.py --rounds 3", 3,
        "a small model that loads in no time: of a large one, it is the loading that a kill costs",
        "--rounds 1 --pictures 2",
    ),
    Bench(
        "compile", "Compiled blocks", "python scripts/bench_compile.py --rounds 20", 2,
        "inductor on a CPU; a small model", "--rounds 2",
    ),
    Bench(
        "trace", "What recording costs", "python scripts/bench_trace.py --rounds 30", 1,
        "a CPU: on an accelerator each moment is an event", "--rounds 2",
    ),
    Bench(
        "replay", "What a call log costs", "python scripts/bench_replay.py --sizes 0.5 4.2 --calls 20", 1,
        "a sleep stands for the compute", "--calls 3",
    ),
)  # fmt: skip
