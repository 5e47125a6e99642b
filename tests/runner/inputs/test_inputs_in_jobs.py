"""Files as arguments, in whole jobs: what the stock pipeline makes of diffusers' load_image, bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import load_image

from runner.config import load_config
from runner.errors import UserError
from runner.run import run
from runner.world import World
from tests import tiny
from tests.outcomes import why
from tests.runner.inputs.input_files import draw, draw_turned, store
from tests.tiny.other_class import for_class

ALONE = World(0, 1, torch.device("cpu"))
CALL = {"height": 16, "width": 16, "num_inference_steps": 2, "strength": 0.9, "max_sequence_length": 16}


def make(output: Path, *words: str) -> list[dict[str, Any]]:
    """Run a job on this process. Its manifest lines."""
    call = [f"job.call.{name}={value}" for name, value in CALL.items()]
    code = run(load_config(None, [*call, f"job.output={output}", "job.format=npy", *words]), ALONE)
    assert code == 0, (output / "failures.jsonl").read_text()
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def model(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return for_class(tiny.build("flux", tiny_root), "FluxImg2ImgPipeline", tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def stock(model: Path) -> DiffusionPipeline:
    return tiny.load_stock(model)


def expected(stock: DiffusionPipeline, prompt: str | None = "a fox", seed: int = 0, **call: Any) -> np.ndarray:
    with torch.inference_mode():
        generator = torch.Generator("cpu").manual_seed(seed)
        return stock(prompt, generator=generator, output_type="np", **{**CALL, **call}).images[0]


def test_a_picture_on_the_command_line(model: Path, stock: DiffusionPipeline, tmp_path: Path) -> None:
    file = draw_turned(tmp_path / "cat.jpg")
    (line,) = make(tmp_path / "out", f"model.path={model}", f"job.call.image={file}", "job.prompt=a fox")
    assert np.array_equal(np.load(tmp_path / "out" / line["file"]), expected(stock, image=load_image(str(file))))
    assert load_image(str(file)).size == (16, 24), "the oracle turns it upright"
    assert line["call"]["image"]["file"] == str(file) and len(line["call"]["image"]["sha256"]) == 64


def test_a_picture_in_a_config_file(
    model: Path, stock: DiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "pictures" / "cat.png")
    config = tmp_path / "elsewhere.yaml"
    config.write_text("job: {prompt: a fox, call: {image: pictures/cat.png}}")
    monkeypatch.chdir(tmp_path)  # such a path is relative to the working folder, as on the command line
    call = [f"job.call.{name}={value}" for name, value in CALL.items()]
    given = load_config(config, [f"model.path={model}", "job.format=npy", "job.output=out", *call])
    assert run(given, ALONE) == 0, why(tmp_path / "out")
    (made,) = (tmp_path / "out" / "images").glob("*.npy")
    assert np.array_equal(np.load(made), expected(stock, image=load_image("pictures/cat.png")))


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_pictures_in_a_prompt_file_are_beside_it(
    model: Path, stock: DiffusionPipeline, tmp_path: Path, ending: str
) -> None:
    pictures = [draw(tmp_path / "asked" / "pictures" / f"{seed}.png", seed) for seed in range(2)]
    prompts = tmp_path / "asked" / f"prompts.{ending}"
    if ending == "jsonl":
        rows = [{"prompt": "a fox", "image": f"pictures/{seed}.png", "seed": seed} for seed in range(2)]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        prompts.write_text("prompt,image,seed\n" + "".join(f"a fox,pictures/{seed}.png,{seed}\n" for seed in range(2)))
    lines = make(tmp_path / "out", f"model.path={model}", f"job.prompts={prompts}")
    for seed, (line, picture) in enumerate(zip(lines, pictures, strict=True)):
        want = expected(stock, seed=seed, image=load_image(str(picture)))
        assert np.array_equal(np.load(tmp_path / "out" / line["file"]), want)


def test_a_request_without_a_prompt_is_made_of_its_inputs(model: Path, stock: Any, tmp_path: Path) -> None:
    """Embeddings that were made before, both in one file, each under the name of its argument."""
    with torch.inference_mode():
        embeds, pooled, _ = stock.encode_prompt("a fox", None, max_sequence_length=16)
    embedded = {"prompt_embeds": embeds.clone(), "pooled_prompt_embeds": pooled.clone()}
    file, picture = store(tmp_path / "fox.safetensors", **embedded), draw(tmp_path / "a.png")
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps(dict.fromkeys(embedded, file.name) | {"image": "a.png", "seed": 3}))
    words = [f"model.path={model}", f"job.prompts={prompts}"]
    (line,) = make(tmp_path / "out", *words)
    assert line["prompt"] is None and line["file"] == "images/0000-fox-3.npy"
    want = expected(stock, None, seed=3, image=load_image(str(picture)), **embedded)
    assert np.array_equal(np.load(tmp_path / "out" / line["file"]), want)
    make(tmp_path / "pictures", *words, "job.format=auto")
    assert (tmp_path / "pictures" / "contact-sheet.png").exists()


def test_a_rerun_makes_what_has_another_input_and_only_that(model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(f'{{"prompt": "fox {n}", "image": "{n}.png"}}\n' for n in range(2)))
    for number in range(2):
        draw(tmp_path / f"{number}.png", number)
    words = [f"model.path={model}", f"job.prompts={prompts}"]
    first = make(tmp_path / "out", *words)
    assert make(tmp_path / "out", *words) == first
    draw(tmp_path / "1.png", seed=7)
    again = make(tmp_path / "out", *words)
    assert again[:2] == first and len(again) == 3
    hashes = [line["call"]["image"]["sha256"] for line in again]
    assert hashes[2] not in hashes[:2] and again[2]["prompt"] == "fox 1"
    assert again[2]["file"] != again[1]["file"], "what was made of the old one stays"
    with pytest.raises(UserError, match=r"made by another recipe \(job\.call\.image: unset -> "):
        make(tmp_path / "out", *words, f"job.call.image={tmp_path / '0.png'}")


def test_a_missing_picture_is_named_with_its_line_before_weights_are_loaded(model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a", "image": "none.png"}\n')
    config = load_config(None, [f"model.path={model}", f"job.prompts={prompts}", f"job.output={tmp_path / 'out'}"])
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: image: none\.png: no such file \(relative to "):
        run(config, ALONE)
    assert not (tmp_path / "out").exists()
