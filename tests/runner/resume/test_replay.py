"""A request that is cut short at any of its calls goes on there with the bits of an undisturbed one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from torch import nn

import runner.resume.duration
import runner.resume.replay
from runner.calls.recorded import NotKept, fingerprint, pack, unpack
from runner.config import load_config
from runner.pipeline.open import open_pipeline
from runner.resume.duration import Duration
from runner.resume.replay import StoppedInside
from runner.world import World
from tests import tiny
from tests.lora.lora_files import save_adapter
from tests.resuming import COMBINATIONS, Bench, request_of, stock_bits, with_scheduler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy 2, in diffusers' schedulers
ALONE = World(0, 1, torch.device("cpu"))
FAST = ("flux", "wan22 two DiTs", "pixart ancestral *")


def opened(path: Path, folder: Path, *overrides: str) -> Bench:
    return Bench(open_pipeline(load_config(None, [f"model.path={path}", *overrides]), ALONE), folder)


@pytest.fixture
def flux(tiny_root: Path, tmp_path: Path) -> Bench:
    return opened(tiny.build("flux", tiny_root), tmp_path)


@pytest.fixture
def flux_bits(tiny_root: Path) -> torch.Tensor:
    return stock_bits("flux", tiny.build("flux", tiny_root))


@pytest.mark.parametrize(
    "combination", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in COMBINATIONS]
)
def test_killed_at_every_call_it_goes_on_with_the_stock_bits(combination: str, tiny_root: Path, tmp_path: Path) -> None:
    """Each kill leaves a torn record besides, or pages of zeros; then the request is killed once more, two calls on."""
    family = COMBINATIONS[combination][0]
    path = tiny.build(family, tiny_root)
    expected, request = stock_bits(combination, path), request_of(family)
    bench = opened(path, tmp_path)
    with_scheduler(combination, bench.pipeline.stock)
    made, calls = bench.make(request, "whole")
    assert torch.equal(made, expected) and calls >= 4
    assert bench.records("whole") == calls, bench.said
    for killed_at in range(calls + 1):
        name = bench.cut("whole", killed_at, torn=100, zeros=4096 * (killed_at % 2))
        made, computed = bench.make(request, name)
        assert torch.equal(made, expected), killed_at
        assert computed == calls - killed_at and bench.records(name) == calls
        again = bench.cut(name, min(killed_at + 2, calls), to="again")
        made, computed = bench.make(request, again)
        assert torch.equal(made, expected) and computed == max(calls - killed_at - 2, 0)
    assert not bench.said


@pytest.mark.parametrize("asked_at", range(5))
def test_asked_to_stop_it_leaves_after_the_current_call_and_goes_on_there(
    flux: Bench, flux_bits: torch.Tensor, asked_at: int
) -> None:
    """With no time left. Before the first call nothing is known of how long one takes: that one is made."""
    request = request_of("flux")

    def time_left() -> float | None:
        return 0.0 if flux.computed >= asked_at else None

    if asked_at == 4:
        assert torch.equal(flux.make(request, "stopped", time_left=time_left)[0], flux_bits)
        return
    with pytest.raises(StoppedInside) as stop:
        flux.make(request, "stopped", time_left=time_left)
    assert stop.value.calls == flux.records("stopped") == max(asked_at, 1)
    made, computed = flux.make(request, "stopped")
    assert torch.equal(made, flux_bits) and computed == 4 - max(asked_at, 1)


def test_asked_to_stop_it_finishes_where_there_is_time(flux: Bench, flux_bits: torch.Tensor) -> None:
    made, computed = flux.make(request_of("flux"), "stopped", time_left=lambda: 60.0)
    assert torch.equal(made, flux_bits) and computed == 4


def test_how_long_a_request_still_takes_is_told_by_its_steps(flux: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps: after the second, half of the time is still needed."""
    seconds = iter(range(0, 1000, 10))
    clock = type("Clock", (), {"perf_counter": lambda: next(seconds), "monotonic": lambda: 0.0})
    flux.make(request_of("flux"), "whole")
    monkeypatch.setattr(runner.resume.replay, "time", clock)
    needed: list[float] = []
    assert flux.pipeline.replay is not None
    asked = Duration.needed
    monkeypatch.setattr(Duration, "needed", lambda one: needed.append(asked(one)) or 0.0)
    flux.make(request_of("flux"), "timed", time_left=lambda: 1e9)
    assert needed == [0.0, 10.0, 20.0, 10.0], "the first call may have warmed up"


def test_auto_keeps_logs_of_long_requests_only(flux: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_of("flux")
    _, computed = flux.make(request, "short", always=False)
    assert computed == 4 and flux.records("short") == 0 and flux.pipeline.replay is not None
    monkeypatch.setattr(
        runner.resume.replay, "fingerprint", None
    )  # the next one is known to be short: it is not even looked at
    flux.make(request, "short", always=False)
    monkeypatch.undo()
    monkeypatch.setattr(runner.resume.duration, "WORTH", 0.0)
    flux.make(request, "long", always=False)
    assert flux.records("long") == 4
    monkeypatch.undo()
    longer = request_of("flux", num_inference_steps=5)
    monkeypatch.setattr(runner.resume.duration, "DECIDE", 0.0)
    monkeypatch.setattr(runner.resume.duration, "WORTH", 1e-9)
    flux.make(longer, "longer", always=False)
    assert flux.records("longer") == 5, "what came before the decision is in it"
    monkeypatch.undo()
    assert flux.make(longer, flux.cut("longer", 2), always=False)[1] == 3, "a log that is there is used"


def test_stochastic_models_leave_the_generators_as_a_computed_call_does(tiny_root: Path, tmp_path: Path) -> None:
    """The DiT draws from each global generator, and its scheduler from the same ones after it."""
    path, request = tiny.build("flux", tiny_root), request_of("flux")

    def noisy(bench: Bench) -> Bench:
        with_scheduler("flux *", bench.pipeline.stock)
        transformer = bench.pipeline.stock.transformer
        forward = transformer.forward

        def drawing(*args: Any, **kwargs: Any) -> Any:
            import random

            (sample,) = forward(*args, **kwargs)
            return (sample + torch.randn(()) + np.random.normal() + random.gauss(0, 1),)

        transformer.forward = drawing
        return bench

    bench = noisy(opened(path, tmp_path))
    expected, _ = bench.make(request, "whole")
    assert not torch.equal(expected, stock_bits("flux *", path))
    for killed_at in range(5):
        made, computed = bench.make(request, bench.cut("whole", killed_at))
        assert torch.equal(made, expected) and computed == 4 - killed_at


def test_a_callback_between_the_steps_runs_again(flux: Bench) -> None:
    """It changes the latents, and draws from the global generator."""

    def callback(stock: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"] * 0.9 + 0.1 * torch.randn(values["latents"].shape)}

    request = request_of("flux", callback_on_step_end=callback)
    expected, calls = flux.make(request, "whole")
    assert not torch.equal(expected, flux.make(request_of("flux"), "plain")[0])
    for killed_at in range(calls + 1):
        made, computed = flux.make(request, flux.cut("whole", killed_at))
        assert torch.equal(made, expected) and computed == calls - killed_at


@pytest.mark.parametrize("mode", ["merge", "dynamic"])
def test_a_request_with_an_adapter_goes_on(mode: str, tiny_root: Path, tmp_path: Path) -> None:
    path = tiny.build("flux", tiny_root)
    adapter = save_adapter(tiny.load_stock(path), tmp_path / "adapter", seed=1)
    bench = opened(path, tmp_path, f"lora.adapters=[{{path: {adapter}, name: one}}]", f"lora.mode={mode}")
    request = replace(request_of("flux"), lora={"one": 0.7})
    expected, calls = bench.make(request, "whole")
    assert not torch.equal(expected, stock_bits("flux", path)) and bench.records("whole") == calls
    for killed_at in range(calls + 1):
        made, computed = bench.make(request, bench.cut("whole", killed_at))
        assert torch.equal(made, expected) and computed == calls - killed_at
        bench.make(request_of("flux"), "plain")  # the adapter comes and goes between requests


def test_other_inputs_end_the_log_where_they_come(flux: Bench) -> None:
    """As where an encoder is no longer the same: the log's calls are none of this request's."""
    expected, _ = flux.make(request_of("flux", guidance_scale=2.0), "other")
    flux.make(request_of("flux"), "whole")
    made, computed = flux.make(request_of("flux", guidance_scale=2.0), "whole")
    assert torch.equal(made, expected) and computed == 4
    assert len(flux.said) == 1 and "call 0 in it is not the one that is made now" in flux.said[0]
    assert flux.make(request_of("flux", guidance_scale=2.0), "whole")[1] == 0, "the log is this request's now"


def _caches(transformer: nn.Module) -> None:
    transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))  # type: ignore[operator]


def _writes_to_its_input(transformer: nn.Module) -> None:
    _around(transformer, lambda forward, hidden_states, **kwargs: forward(hidden_states.mul_(1.5), **kwargs))


def _gives_its_input(transformer: nn.Module) -> None:
    _around(transformer, lambda forward, hidden_states, **kwargs: (hidden_states,))


def _counts_its_calls(transformer: Any) -> None:
    transformer.seen = []

    def forward(forward: Any, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        transformer.seen.append(hidden_states)
        return (forward(hidden_states, **kwargs)[0] * len(transformer.seen),)

    _around(transformer, forward)


def _has_a_foreign_hook(transformer: nn.Module) -> None:
    calls: list[int] = []
    transformer.transformer_blocks[0].register_forward_hook(lambda *_: calls.append(1))  # type: ignore[index,union-attr]


def _around(transformer: Any, call: Any) -> None:
    forward = transformer.forward

    def around(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        return call(forward, hidden_states, **kwargs)

    transformer.forward = around


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_caches, "the hook"),
        (_writes_to_its_input, "writes into what it is called with"),
        (_gives_its_input, "shares memory with"),
        (_counts_its_calls, "keeps state in seen"),
        (_has_a_foreign_hook, "the hook _has_a_foreign_hook"),
    ],
)
def test_what_keeps_state_between_calls_is_not_logged_and_said_once(
    change: Any, said: str, flux: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    change(flux.pipeline.stock.transformer)
    _, computed = flux.make(request_of("flux"), "stateful")
    assert computed == 4 and not list(flux.folder.glob("*.log"))
    flux.make(request_of("flux"), "stateful")
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("resume_inside:")]
    assert len(told) == 1 and said in told[0] and not list(flux.folder.glob("*.log"))


def test_a_first_call_that_may_have_begun_to_keep_state_is_not_written_before_the_second_tells(flux: Bench) -> None:
    def time_left() -> float | None:
        return 0.0 if flux.computed >= 1 else None

    _counts_its_calls(flux.pipeline.stock.transformer)
    with pytest.raises(StoppedInside) as stop:
        flux.make(request_of("flux"), "stateful", time_left=time_left)
    assert stop.value.calls == 0 and not list(flux.folder.glob("*.log"))


def test_a_first_call_that_sets_up_a_table_is_written_after_the_second(flux: Bench) -> None:
    transformer = flux.pipeline.stock.transformer

    def forward(forward: Any, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        transformer.table = getattr(transformer, "table", torch.ones(3))
        return forward(hidden_states, **kwargs)

    _around(transformer, forward)
    flux.make(request_of("flux"), "table")
    assert flux.records("table") == 4


def _results() -> Iterator[Any]:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    wide = torch.arange(60.0).view(3, 4, 5)
    yield (wide.clone(), None, 3, 2.5, "text", True)
    yield [wide.to(torch.bfloat16).transpose(0, 2), {"a": wide[:, 1:3, ::2].to(torch.float64)}]
    yield Transformer2DModelOutput(sample=wide.permute(2, 0, 1).half())
    yield (wide.new_empty(0, 4), torch.tensor(3), torch.ones(1).expand(1), wide > 3, wide.to(torch.complex64))
    yield (wide.clone()[1:], torch.zeros(80)[65:])


@pytest.mark.parametrize("result", list(_results()), ids=lambda result: type(result).__name__)
@pytest.mark.parametrize("inference", [False, True])
def test_results_come_back_as_they_were(result: Any, inference: bool) -> None:
    tree, body = pack(result, ())
    with torch.inference_mode(inference):
        found = unpack(tree, bytearray(b"".join(body)), torch.device("cpu"))

    def compare(one: Any, other: Any) -> None:
        assert type(one) is type(other)
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other) and one.dtype == other.dtype and one.stride() == other.stride()
            assert one.storage_offset() % 64 == other.storage_offset() % 64 and other.is_inference() == inference
            other.zero_()
        elif isinstance(one, dict):
            assert list(one) == list(other)
            for name in one:
                compare(one[name], other[name])
        elif isinstance(one, list | tuple):
            for inner, across in zip(one, other, strict=True):
                compare(inner, across)
        else:
            assert one == other

    with torch.inference_mode(inference):
        compare(result, found)


def test_what_is_more_than_tensors_is_not_kept() -> None:
    shared = torch.ones(4)
    for result in (object(), (shared, shared), torch.ones(1).expand(3), {1: shared}, torch.ones(2).to_sparse()):
        with pytest.raises(NotKept):
            pack(result, ())
    with pytest.raises(NotKept, match="called with a object"):
        fingerprint("transformer", (object(),), {})
    with pytest.raises(NotKept, match="no class of outputs"):
        unpack({"is": "output", "class": "os:system", "items": {}}, bytearray(), torch.device("cpu"))


def test_a_fingerprint_tells_calls_apart_by_each_bit() -> None:
    ones = torch.ones(3, 4)
    other = ones.clone()
    other.view(torch.int32)[2, 3] += 1
    calls: list[tuple[Any, Any]] = [
        ((ones,), {}), ((other,), {}), ((ones.view(4, 3),), {}), ((ones.bfloat16(),), {}), ((), {"x": ones}),
        (([ones],), {}), ((ones, 1), {}), ((ones, 1.0), {}), ((ones, True), {}), ((ones, None), {}),
    ]  # fmt: skip
    prints = [fingerprint("transformer", *call) for call in calls]
    assert len({*prints, fingerprint("controlnet", (ones,), {})}) == len(calls) + 1
    assert fingerprint("transformer", (ones.t().contiguous().t(),), {}) == prints[0], "strides are the same code's"
