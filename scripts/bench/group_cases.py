"""What a group is measured with: where the weights are, how fast they come, and how much there is to compute."""

from dataclasses import dataclass, field
from typing import Any

DISK = ("placement.transformer.rest=disk", "placement.text_encoder.rest=disk")
SHARD = ("placement.transformer.share=shard", "placement.text_encoder.share=shard")


@dataclass(frozen=True)
class Case:
    """`bandwidth`: GB/s of our reader, 0 for the disk as it is; `slower`: instead, the DiT's weights take so many times
    as long to come up as a call computes in a pass. `cold`: the files' pages are dropped before each arm. `size` is the
    side of a picture: 64 tokens at 64, four times as many at 128. `model` is what the included one is grown to."""

    title: str
    placement: tuple[str, ...] = DISK
    bandwidth: float = 0.0
    slower: float = 0.0
    cold: bool = False
    size: int = 128
    steps: int = 4
    pictures: int = 8  # so that each group is a whole one
    numbers: tuple[int, ...] = (1, 2, 4, 8)
    peers: bool = False
    rounds: int = 3
    ranks: int = 1
    aims: dict[str, float] = field(default_factory=dict)  # of an arm's time over that of resident weights
    over_one: dict[str, float] = field(default_factory=dict)  # ... over that of N = 1
    over_fresh: float | None = None  # of N = 1, over that of a pipeline that never made a group
    over_best: dict[str, float] = field(default_factory=dict)  # ... over that of the best N
    model: dict[str, int] = field(default_factory=dict)

    @property
    def limit(self) -> str:
        if self.slower:
            return f"a reader that takes {self.slower:g} x as long as computing"
        return f"a reader of {self.bandwidth:g} GB/s" if self.bandwidth else "the disk as it is"


# A text encoder computes next to nothing, so that its weights hide behind nothing: small, but where it is the case.
SMALL = {"layers": 8, "heads": 11, "encoder_layers": 2, "encoder_width": 128}
LARGE = {"layers": 8, "heads": 24, "encoder_layers": 2, "encoder_width": 256}
ENCODER = {"layers": 6, "heads": 8, "encoder_layers": 8, "encoder_width": 384}
AUTO = {"auto, once measured": 1.05}

CASES: dict[str, Case] = {
    "warm": Case("in the page cache", size=64, peers=True, model=LARGE, over_best=AUTO,
                 over_fresh=1.02),
    "cold": Case("cold", cold=True, size=64, peers=True, numbers=(1, 4), rounds=2, model=LARGE, over_best=AUTO),
    "3x": Case("transfer 3 x compute", slower=3.0, size=64, steps=8, rounds=2, model=LARGE,
               aims={"N = 4": 1.10}, over_best=AUTO),
    "0.1": Case("0.1 GB/s", bandwidth=0.1, model=SMALL, rounds=2, over_best=AUTO),
    "0.5": Case("0.5 GB/s", bandwidth=0.5, size=64, rounds=2, model=LARGE, over_best=AUTO),
    "sharded": Case("sharded over two gloo ranks", placement=SHARD, size=64, ranks=2, rounds=2, model=LARGE,
                    over_best=AUTO),
    "prompts": Case("32 prompts, an encoder of most weights", bandwidth=0.25, size=64, steps=2, pictures=32,
                    numbers=(1, 16), model=ENCODER, over_one={"auto": 0.5}),
}  # fmt: skip


def quick(case: Case) -> dict[str, Any]:
    """What a look at whether it works changes: a small model, two sizes of groups, one round."""
    numbers = tuple(number for number in case.numbers if number in (1, 4, 16))
    return {"model": {**case.model, "layers": 4, "heads": 11}, "numbers": numbers, "rounds": 1, "steps": 2}
