"""The cases of scripts/bench_offload.py, and its tables."""

from dataclasses import dataclass

import numpy as np

from bench.offload_arms import TEXT_TOKENS as TEXT_TOKENS
from bench.paired import Spread
from bench.ratios import note

MIB = 2**20


@dataclass(frozen=True)
class Case:
    """What is timed: an arm with the page cache in a state."""

    arm: str
    state: str
    what: str = "steps"

    @property
    def name(self) -> str:
        arm = "transfer" if self.what == "transfer" else self.arm
        return arm if arm in ("resident", "ours, host") else f"{arm}, {self.state}"

    @property
    def server(self) -> str:
        return f"{self.arm}, {self.state}" if self.arm == "ours, disk" else self.arm


CASES = (
    Case("resident", "warm"),
    *(Case("ours, disk", state) for state in ("warm", "cold")),
    *(Case("ours, disk", state, "transfer") for state in ("warm", "cold")),
    Case("ours, host", "warm"),
    *(Case(arm, state) for arm in ("diffusers", "accelerate") for state in ("warm", "cold")),
)


@dataclass(frozen=True)
class Figures:
    """By case: the fields of Sample, one for each round, and of Peak. `node_*`: copies that 4 ranks hold, as PSS."""

    samples: dict[str, list[dict[str, float]]]
    peaks: dict[str, dict[str, int]]
    differing: list[str]
    node_store: float
    node_ranks: float

    def column(self, name: str, field: str) -> np.ndarray:
        return np.array([sample[field] for sample in self.samples[name]])

    def seconds(self, name: str) -> np.ndarray:
        return self.column(name, "seconds")

    def best_peer(self, state: str) -> str:
        return min((f"{arm}, {state}" for arm in ("diffusers", "accelerate")), key=lambda n: np.median(self.seconds(n)))


def table(figures: Figures) -> str:
    return "\n".join([*_arms(figures), "", *_aims(figures)])


def _arms(figures: Figures) -> list[str]:
    resident = figures.seconds("resident")
    lines = [
        f"{'':18}{'s/step':>8}{'10th .. 90th':>16}{'/ resident':>12}{'processor s/step':>18}{'others':>8}"
        f"{'MiB/step':>10}{'MiB/step':>10}{'anonymous':>11}{'mapped':>8}",
        f"{'':54}{'main':>9}{'all':>9}{'cores':>8}{'from disk':>10}{'by calls':>10}{'peak MiB':>11}{'MiB':>8}",
    ]
    for name in figures.samples:
        seconds = figures.seconds(name)
        spread = Spread.of(seconds)
        others = np.median(figures.column(name, "others") / seconds)
        main, every = (np.median(figures.column(name, field)) for field in ("main_thread", "processor"))
        read, asked = (np.median(figures.column(name, field)) / MIB for field in ("bytes_read", "bytes_asked"))
        peak = figures.peaks.get(name)
        memory = f"{peak['anonymous'] / MIB:11.0f}{peak['mapped'] / MIB:8.0f}" if peak else ""
        lines.append(
            f"{name:18}{spread.median:8.3f}{f'{spread.low:.3f} .. {spread.high:.3f}':>16}"
            f"{np.median(seconds / resident):12.2f}{main:9.2f}{every:9.2f}{others:8.2f}{read:10.0f}{asked:10.0f}"
            f"{memory}"
        )
    if figures.differing:
        lines.append(f"other bits than resident: {', '.join(figures.differing)}")
    return lines


def _aims(figures: Figures) -> list[str]:
    lines = []
    for state in ("warm", "cold"):
        ours = figures.seconds(f"ours, disk, {state}")
        transfer = figures.seconds(f"transfer, {state}")
        longer = np.maximum(figures.seconds("resident"), transfer)
        lines.append(_aim(f"exposed, disk, {state}: ours / max(resident, transfer)", ours / longer, 1.05))
    host = figures.seconds("ours, host") / figures.seconds("resident")
    lines.append(_aim("exposed, host: ours / resident", host, 1.05))
    for state, aim in (("warm", 0.75), ("cold", 0.6)):
        peer, ours = figures.best_peer(state), figures.seconds(f"ours, disk, {state}")
        lines.append(_aim(f"ours, disk / best peer ({peer})", ours / figures.seconds(peer), aim))
        floor = np.median(figures.seconds("resident") / figures.seconds(peer))
        memory = [figures.peaks[name]["anonymous"] for name in (f"ours, disk, {state}", peer)]
        verdict = "held" if memory[0] <= memory[1] else "MISSED"
        lines.append(
            f"  resident / {peer}: {floor:.3f}, the least there is; anonymous memory {memory[0] / memory[1]:.2f} "
            f"of it: {verdict}"
        )
    verdict = "held" if figures.node_store <= 1.1 else "MISSED"
    note("copies of the weights in the host store of 4 ranks", [figures.node_store], 1.1)
    lines.append(
        f"host store of 4 ranks: {figures.node_store:.3f} copies (aim 1.1: {verdict}); all that the ranks took: "
        f"{figures.node_ranks:.3f}"
    )
    return lines


def _aim(label: str, ratios: np.ndarray, aim: float) -> str:
    found = Spread.of(ratios)
    note(label, ratios, aim)
    verdict = "held" if found.median <= aim else "MISSED"
    return f"{label:58}{found.median:7.3f}   ({found.low:.3f} .. {found.high:.3f})   aim {aim:.2f}: {verdict}"
