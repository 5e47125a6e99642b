"""--verify: requests of a job made again by the stock pipeline, and what is said where one is not equal."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import runner.parity.plain as plain
from runner.config import load_config
from runner.errors import ExitCode
from runner.media.pixels import pixel_hash
from runner.output.manifest import file_facts
from runner.pipeline.pipeline import Pipeline
from runner.run import run
from runner.world import World
from tests import tiny
from tests.lora.lora_files import open_tiny, save_adapter
from weights.room import NoRoom

ROOT = Path(__file__).resolve().parents[3]
SMALL = ("job.images_per_prompt=1", "job.call.num_inference_steps=1")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def make(out: Path) -> Callable[..., int]:
    """Run a job in this process with --verify; its exit code."""

    def make(*overrides: str, model: Path = ROOT / "models" / "emoji-dit", verify: int = 2) -> int:
        words = [*SMALL, f"model.path={model}", f"job.output={out}", "job.prompt=[a rocket, a panda, a castle]"]
        base = ROOT / "configs" / "generate.yaml" if model.name == "emoji-dit" else None
        return run(load_config(base, [*words, *overrides]), World(0, 1, torch.device("cpu")), verify)

    return make


def verified(out: Path) -> Any:
    return json.loads((out / "run.json").read_text())["verified"]


def test_the_bits_of_the_stock_pipeline(
    make: Callable[..., int], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make("placement.transformer.rest=disk", "job.group=3") == ExitCode.DONE
    told = verified(out)
    assert told["holds"] and [one["equal"] for one in told["requests"]] == [True, True]
    assert [one["prompt"] for one in told["requests"]] == ["a rocket", "a panda"], "spread over the job"
    assert {one["how"] for one in told["requests"]} == {"the stock pipeline, resident"}
    assert not (out / "verify").exists()
    assert "verified: 2 of 2 requests have the same bits again" in capsys.readouterr().err


def test_other_pixels_are_told_and_kept(
    make: Callable[..., int], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(verify=0)
    assert "verified" not in json.loads((out / "run.json").read_text())
    _change_a_pixel(out)
    assert make(verify=9) == ExitCode.DIFFERS
    told = verified(out)
    assert not told["holds"] and [one["equal"] for one in told["requests"]] == [False, True, True]
    (file,) = told["requests"][0]["files"]
    assert 0 < file["apart"] < 0.1
    assert (out / "verify" / file["file"]).exists() and len(list((out / "verify" / "images").iterdir())) == 1
    assert f"differs: {file['file']}" in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["state"] == "differs"


def _change_a_pixel(out: Path) -> None:
    """The job as a runner had made it whose first picture is not the stock pipeline's."""
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    path = out / lines[0]["file"]
    array = np.array(Image.open(path))
    array[0, 0] ^= 128
    Image.fromarray(array).save(path)
    facts = {**file_facts(path), "sha256": pixel_hash(array)}
    lines[0] = {**lines[0], **facts, "files": [{**lines[0]["files"][0], **facts}]}
    (out / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_job_s_own_weights_are_gone_by_then(make: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []

    def certify(*_: object) -> Any:
        alive.append(sum(isinstance(one, Pipeline) for one in gc.get_objects()))
        raise RuntimeError("seen enough")

    monkeypatch.setattr("runner.run.certify", certify)
    gc.collect()
    before = sum(isinstance(one, Pipeline) for one in gc.get_objects())
    assert make("placement.default.rest=host") == ExitCode.DIFFERS, "a certificate that could not be made"
    assert alive == [before]


@pytest.mark.slow
def test_what_may_differ_is_said(make: Callable[..., int], out: Path) -> None:
    assert make("execution.compile=true", "job.format=npy", verify=1) == ExitCode.DONE
    told = verified(out)
    assert told["holds"] and told["may_differ"] == ["execution.compile"]
    (file,) = told["requests"][0]["files"]
    assert not file["equal"] and 0 < file["apart"] < 1e-5


@pytest.mark.parametrize("refuses", [1, 2])
def test_where_it_does_not_fit_the_plainest_placement_that_does(
    refuses: int, make: Callable[..., int], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise NoRoom("none")

    monkeypatch.setattr(plain, "require_room_whole", no_room)
    if refuses == 2:
        monkeypatch.setattr("offload.HostStore.from_files", no_room)
    assert make(verify=1) == ExitCode.DONE
    rest = ("host", "disk")[refuses - 1]
    assert verified(out)["requests"][0]["how"] == f"the runner on one rank, rest={rest}"


@pytest.mark.parametrize("mode", ["merge", "dynamic"])
def test_adapters_by_diffusers_own_loaders(
    mode: str, make: Callable[..., int], out: Path, tiny_root: Path, tmp_path: Path
) -> None:
    path = tiny.build("flux", tiny_root)
    folder = save_adapter(open_tiny("flux", tiny_root), tmp_path / "one", seed=1, targets=r".*(to_q|to_k)")
    call = [f"job.call.{name}={value}" for name, value in {**tiny.FAMILIES["flux"].call}.items()]
    words = [*call, *SMALL, f"lora=[{{path: {folder}, name: one, strength: 0.7}}]", f"lora.mode={mode}"]
    assert make(*words, model=path, verify=1) == ExitCode.DONE
    (one,) = verified(out)["requests"]
    assert one["equal"] and one["how"] == "the stock pipeline, resident"


def test_adapters_that_diffusers_has_no_loader_for(make: Callable[..., int], out: Path) -> None:
    adapter = f"lora=[{{path: {ROOT}/models/emoji-dit-lora-ink, name: ink}}]"
    assert make(adapter, verify=1) == ExitCode.DONE
    (one,) = verified(out)["requests"]
    assert one["equal"] and one["how"] == "resident; its adapters by the runner"
