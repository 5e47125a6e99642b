"""The search finds what trying everything finds, and what it finds fits."""

import itertools
import time
from dataclasses import replace
from pathlib import Path

import pytest

from runner.components.directory import directory_of
from runner.config import PlacementConfig, RunConfig, load_config
from runner.plan.best import told, ways
from runner.plan.machine import GIB, Machine, Rates
from runner.plan.model import Model, model_of, part_of
from runner.plan.needs import needs, shortages
from runner.plan.search import options, search
from runner.plan.seconds import request_seconds
from runner.plan.work import Work, Workload
from tests.recipes import plans

MIB = 2**20
RATES = Rates(flops=1e11, link=1e9, disk=1e8, within=2e8)
MACHINE = Machine(gpus=2, nodes=1, device_memory=8 * MIB, host_memory=200 * MIB)
WORKLOAD = Workload(
    {
        "text_encoder": Work(1, 1e8, MIB),
        "transformer": Work(40, 1e9, 2 * MIB, held=MIB // 4, together=2),
        "vae": Work(1, 1e9, 4 * MIB),
    },
    steps=20,
)


@pytest.fixture(scope="module")
def model(emoji: Path) -> Model:
    config: RunConfig = load_config(None, [f"model.path={emoji}"])
    return model_of(directory_of(config, weights=False), config)


@pytest.mark.parametrize("memory", [24, 12, 10, 8])
def test_no_placement_is_quicker(model: Model, memory: int) -> None:
    """Of all products of what is tried for two components, beside a resident third one."""
    machine = replace(MACHINE, device_memory=memory * MIB)
    now = {"vae": part_of(model.sizes[2], next(options("vae", 1, model, 2)), WORKLOAD, 2).placement}
    found = search(model, WORKLOAD, machine, RATES, shard=2, now=now, fixed=["vae"])
    kinds = [[part_of(one, kind, WORKLOAD, 2) for kind in options(one.name, len(one.blocks), model, 2)]
             for one in model.sizes[:2]]  # fmt: skip
    vae = part_of(model.sizes[2], now["vae"], WORKLOAD, 2)
    every = [(*parts, vae) for parts in itertools.product(*kinds)]
    fitting = [parts for parts in every if not shortages(needs(parts, machine), machine)]
    assert bool(found) == bool(fitting)
    if fitting:
        best = min(request_seconds(parts, RATES, machine) for parts in fitting)
        assert min(one.seconds for one in found) == pytest.approx(best)
        assert found[0].seconds <= best * 1.06, "two figures of the seconds count, then the fewest words"
        assert not shortages(needs(found[0].parts, machine), machine)


@pytest.mark.slow
def test_groups_and_guidance_are_searched(model: Model) -> None:
    machine = replace(MACHINE, device_memory=14 * MIB)
    most = ways(model, WORKLOAD, machine, RATES, separate=2, contexts=[1], latency=False)
    least = ways(model, WORKLOAD, machine, RATES, separate=2, contexts=[1], latency=True)
    assert most[0].throughput == pytest.approx(max(way.throughput for way in most), rel=0.01)
    assert least[0].latency == pytest.approx(min(way.latency for way in least), rel=0.01)
    assert (least[0].guidance, least[0].group) == (2, 1), "one request takes half the calls on two ranks"
    assert most[0].guidance == 1, "two requests at a time need nothing of each other"
    assert "mesh.guidance=2" in least[0].words()
    text = told(most, latency=False)
    assert text.startswith("best: ") and "runner-up: " in text and "bound by" in text


@pytest.mark.slow
def test_tokens_are_shared_out_where_they_can_be(model: Model) -> None:
    machine = replace(MACHINE, device_memory=14 * MIB)
    alone, shared = (
        ways(model, WORKLOAD, machine, RATES, separate=1, contexts=contexts, latency=True)[0]
        for contexts in ([1], [1, 2])
    )
    assert (alone.guidance, alone.context) == (1, 1), "a pipeline that makes its calls in one batch has none apart"
    assert shared.context == 2 and shared.latency < alone.latency
    assert "mesh.context=2" in shared.words() and "part of the recipe" in told([shared], latency=True)


@pytest.mark.parametrize("group", [1, 4])
def test_nearest_changes_fewest(model: Model, group: int) -> None:
    """Of all products, again: where all stays and that does not fit."""
    machine = replace(MACHINE, device_memory=12 * MIB)
    now = {one.name: PlacementConfig() for one in model.sizes}
    found = search(model, WORKLOAD, machine, RATES, shard=2, group=group, now=now, by_change=True, fixed=["vae"])
    kinds = [[part_of(one, kind, WORKLOAD, 2) for kind in options(one.name, len(one.blocks), model, 2)]
             for one in model.sizes[:2]]  # fmt: skip
    kinds.append([part_of(model.sizes[2], now["vae"], WORKLOAD, 2)])
    fitting = [parts for parts in itertools.product(*kinds) if not shortages(needs(parts, machine, group), machine)]
    changes = [sum(part.placement != now[part.name] for part in parts) for parts in fitting]
    assert fitting and min(changes) > 0
    assert found[0].changed == min(changes)
    best = min(request_seconds(parts, RATES, machine, group) for parts, changed in zip(fitting, changes, strict=True)
               if changed == min(changes))  # fmt: skip
    assert best <= found[0].seconds <= best * 1.06


@pytest.fixture(scope="module", params=plans.MODELS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Workload]:
    real_model, workload, _ = plans.planned(request.param, tmp_path_factory.mktemp(request.param))
    return real_model, workload


@pytest.mark.slow
def test_real_models_take_seconds(real: tuple[Model, Workload]) -> None:
    """Of the processor, after the rehearsal; the last one is --best for 1,024 ranks."""
    for gpus, memory, host in plans.MACHINES.values():
        machine = Machine(gpus, 1, memory * GIB, host * GIB, reserved=GIB, process=GIB)
        start = time.process_time()
        found = search(*real, machine, Rates(), shard=gpus)
        assert time.process_time() - start < 3
        assert all(not shortages(needs(one.parts, machine), machine) for one in found)
    machine = Machine(8, 128, 80 * GIB, 512 * GIB, reserved=GIB, process=GIB)
    start = time.process_time()
    assert ways(*real, machine, Rates(), separate=2, contexts=[1, 2, 4, 8], latency=False)
    assert time.process_time() - start < 10


def test_a_thousand_ranks_take_seconds(model: Model) -> None:
    machine = Machine(gpus=8, nodes=128, device_memory=8 * MIB, host_memory=100 * 2**30)
    assert search(model, WORKLOAD, machine, RATES, shard=1024)
