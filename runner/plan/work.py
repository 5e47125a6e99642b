"""What a request asks of a component: how many calls, and what each computes and holds."""

from collections.abc import Mapping
from dataclasses import dataclass

from runner.plan.sizes import Sizes


@dataclass(frozen=True)
class Work:
    """Of one component, for one request made alone.

    `calls` a request, of them `together` at most that do not depend on each other (guidance); `flops` and `activations`
    (bytes beside weights, the pipeline's own tensors counted) of the largest call; `held`: bytes that a call holds
    between two blocks, and so while others take turns.
    """

    calls: int
    flops: float = 0.0
    activations: int = 0
    held: int = 0
    together: int = 1


@dataclass(frozen=True)
class Workload:
    """By component; `steps` of denoising. `unknown`: why activations and FLOPs are not known, where they are not."""

    by_name: Mapping[str, Work]
    steps: int
    unknown: str | None = None

    def of(self, name: str) -> Work:
        return self.by_name.get(name, Work(0))


def assumed(sizes: list[Sizes], steps: int, why: str) -> Workload:
    """One call of each component, and one of a denoiser a step: where nothing could be found out."""
    calls = {one.name: Work(steps if one.stage == "denoise" else 1) for one in sizes}
    return Workload(calls, steps, why)
