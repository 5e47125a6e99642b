"""The main job in real processes: torchrun, real files, and the stock pipeline as the oracle."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runner.config import load_config
from runner.media.pixels import pixel_hash
from tests import tiny
from tests.processes import run_command

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def launch(num_ranks: int, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One rank is plain python, more are torchrun's."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command = [sys.executable, *(torchrun if num_ranks > 1 else []), str(script), *arguments]
    return run_command(command, cwd=ROOT, env=ENVIRONMENT, timeout=240)


def generate(num_ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return launch(num_ranks, ROOT / "scripts" / "generate.py", *arguments)


def device_of_jobs(num_ranks: int) -> torch.device:
    """Where so many ranks compute, and the stock pipeline beside them: it is the kernels that decide the bits."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator and torch.accelerator.device_count() >= num_ranks else torch.device("cpu")


def manifest(output: Path) -> list[dict[str, Any]]:
    """By seed: which rank is done first is chance."""
    lines = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    return sorted(lines, key=lambda line: line["seed"])


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_every_family_gives_the_stock_bits_on_every_rank(num_ranks: int, tiny_root: Path, tmp_path: Path) -> None:
    jobs: list[Sequence[str]] = []
    for name, family in tiny.FAMILIES.items():
        prompts = tmp_path / f"{name}.jsonl"
        plain = [p[0] if isinstance(p, list) else p for p in family.prompts]
        prompts.write_text(
            "".join(
                json.dumps({family.prompt_argument: p, "seed": i, **family.call}) + "\n" for i, p in enumerate(plain)
            )
        )
        path = tiny.build(name, tiny_root)
        jobs.append([f"model.path={path}", f"job.prompts={prompts}", "job.format=npy", f"job.output={tmp_path / name}"])
    listing = tmp_path / "jobs"
    listing.write_text("\n".join(map(json.dumps, jobs)))
    result = launch(num_ranks, ROOT / "tests" / "distributed" / "many_jobs.py", str(listing))
    assert result.returncode == 0, result.stderr
    ranks: set[int] = set()
    for name, family in tiny.FAMILIES.items():
        stock = tiny.load_stock(tiny.build(name, tiny_root)).to(device_of_jobs(num_ranks))
        lines = manifest(tmp_path / name)
        assert len(lines) == len(family.prompts) == 3
        ranks |= {line["rank"] for line in lines}
        for seed, (line, prompt) in enumerate(zip(lines, family.prompts, strict=True)):
            expected = tiny.call_stock(stock, family, prompt, seed)[0]
            made = np.load(tmp_path / name / line["file"])
            assert np.array_equal(made, expected), f"{name}, prompt {seed}, rank {line['rank']}"
            assert line["sha256"] == pixel_hash(made)
    assert ranks == set(range(num_ranks))


def test_two_ranks_give_the_stock_latents(tiny_root: Path, tmp_path: Path) -> None:
    stocks = {name: tiny.load_stock(tiny.build(name, tiny_root)).to(device_of_jobs(2)) for name in tiny.FAMILIES}
    script = ROOT / "tests" / "distributed" / "latents_on_ranks.py"
    result = launch(2, script, str(tiny_root), str(tmp_path))
    assert result.returncode == 0, result.stderr
    for name, family in tiny.FAMILIES.items():
        for rank in (0, 1):
            expected = tiny.call_stock(stocks[name], family, family.prompts[rank], rank, output_type="latent")[0]
            latents = np.asarray(torch.as_tensor(expected).cpu())
            assert np.array_equal(np.load(tmp_path / f"{name}-{rank}.npy"), latents), f"{name}, rank {rank}"


def test_the_embedded_model_gives_the_stock_pictures_on_two_ranks(emoji: Path, tmp_path: Path) -> None:
    """Three prompts on two ranks. Also everything that a run leaves behind."""
    recipe = ["job.prompt=[a rocket, a panda, a castle]", "job.seed=5", "job.call.num_inference_steps=4"]
    result = generate(2, *recipe, "job.images_per_prompt=1", "job.profile=true", f"job.output={tmp_path}")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("3 of 3 made on 2 rank(s)") == 1, "the summary comes from rank 0 alone"
    call = load_config(ROOT / "configs" / "generate.yaml", recipe).job.call
    stock = tiny.load_stock(emoji).to(device_of_jobs(2))
    lines = manifest(tmp_path)
    assert {(line["prompt"], line["seed"]) for line in lines} == {("a rocket", 5), ("a panda", 5), ("a castle", 5)}
    assert len(lines) == 3 and {line["rank"] for line in lines} == {0, 1}
    for line in lines:
        with torch.inference_mode():
            expected = stock(line["prompt"], generator=torch.Generator().manual_seed(5), **call).images[0]
        picture = Image.open(tmp_path / line["file"])
        assert np.array_equal(np.asarray(picture), np.asarray(expected))
        assert json.loads(picture.info["recipe"]) == {key: line[key] for key in ("prompt", "seed", "call", "id")}
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["finished"] == 3 and report["failures"] == [] and len(report["ranks"]) == 2
    assert {c["mode"] for c in report["components"].values()} == {"inference"}
    assert set(report["ranks"][0]["seconds_per_stage"]) == {"encode", "denoise", "decode"}
    assert {line["made_on"]["device"] for line in lines} == {rank["made_on"]["device"] for rank in report["ranks"]}
    assert all(rank["peak_own_host_bytes"] > 50 * 2**20 for rank in report["ranks"])
    assert [(node["ranks"], node["shared_host_bytes"]) for node in report["nodes"]] == [([0, 1], 0)]
    assert Image.open(tmp_path / "contact-sheet.png").size[0] > 100
    for rank in (0, 1):
        trace = json.loads((tmp_path / "profile" / f"rank{rank}.json").read_text())
        assert {"encode/text_encoder", "denoise/transformer", "decode/vae"} <= {e["name"] for e in trace["traceEvents"]}
    assert not list(tmp_path.rglob(".*")), "no temporary files stay"


def test_explain_shows_what_the_resolver_decided(tmp_path: Path) -> None:
    placements = ["placement.transformer.share=shard", "placement.text_encoder.rest=disk"]
    result = generate(2, *placements, "--explain", f"job.output={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    rows = [line.split(maxsplit=5) for line in result.stdout.splitlines()]
    assert rows[0] == ["stage", "component", "placement", "mode", "reason"]
    assert [row[:5] for row in rows[1:4]] == [
        ["encode", "text_encoder", "replicate,", "disk", "normal"],
        ["denoise", "transformer", "shard", "2,", "device"],
        ["decode", "vae", "replicate,", "device", "inference"],
    ]
    assert rows[1][5] == "offloaded: its blocks come and go"
    assert " ".join(rows[2][5].split()) == "normal sharded over 2 ranks: its weights are gathered block by block"
    assert "transformer: loaded each rank its slices" in result.stdout
    assert not (tmp_path / "out").exists(), "nothing is generated"


def test_a_job_in_mixed_placements_gives_the_stock_pictures(emoji: Path, tmp_path: Path) -> None:
    """Sharded, offloaded and resident components in one job, under the narrower scope, on a ragged list."""
    placements = ["placement.transformer.share=shard", "placement.text_encoder.rest=host", "placement.vae.rest=disk"]
    recipe = ["job.prompt=[a rocket, a panda, a castle]", "job.images_per_prompt=1", "job.call.num_inference_steps=3"]
    result = generate(2, *placements, *recipe, "execution.leave_inference=weights", f"job.output={tmp_path}")
    assert result.returncode == 0, result.stderr
    call = load_config(ROOT / "configs" / "generate.yaml", recipe).job.call
    stock = tiny.load_stock(emoji).to(device_of_jobs(2))
    for line in manifest(tmp_path):
        with torch.inference_mode():
            expected = stock(line["prompt"], generator=torch.Generator().manual_seed(0), **call).images[0]
        assert np.array_equal(np.asarray(Image.open(tmp_path / line["file"])), np.asarray(expected))
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["finished"] == 3
    assert {name: c["placement"] for name, c in report["components"].items()} == {
        "text_encoder": "replicate, host",
        "transformer": "shard 2, device",
        "vae": "replicate, disk",
    }
    assert {c["mode"] for c in report["components"].values()} == {"inference"}


def test_a_failing_request_is_recorded_and_the_others_go_on(emoji: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": "a rocket"},
        {"prompt": "a panda", "height": 63},
        {"prompt": "../../etc/\tpasswd \N{ROCKET} " + "x" * 10_000},
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = generate(
        1, f"job.prompts={prompts}", "job.images_per_prompt=1", "job.call.num_inference_steps=2",
        f"job.output={tmp_path / 'out'}",
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert "a panda" in result.stderr
    lines = manifest(tmp_path / "out")
    assert [line["prompt"] for line in lines] == [rows[0]["prompt"], rows[2]["prompt"]]
    assert all((tmp_path / "out" / line["file"]).resolve().parent == tmp_path / "out" / "images" for line in lines)
    (failure,) = json.loads((tmp_path / "out" / "run.json").read_text())["failures"]
    assert failure["prompt"] == "a panda" and "63" in failure["reason"]
    assert failure["reason"].startswith("start/PixArtSigmaPipeline"), "raised before any component was called"


def test_a_video_is_an_mp4_with_its_frame_rate(tiny_root: Path, tmp_path: Path) -> None:
    import imageio

    family = tiny.FAMILIES["wan"]
    row = {"prompt": family.prompts[0], "seed": 0, **family.call}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    result = generate(
        1, str(write_empty(tmp_path)), f"model.path={tiny.build('wan', tiny_root)}", "job.fps=8",
        f"job.prompts={tmp_path / 'prompts.jsonl'}", f"job.output={tmp_path / 'out'}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (line,) = manifest(tmp_path / "out")
    assert line["file"].endswith(".mp4")
    reader = imageio.get_reader(tmp_path / "out" / line["file"])
    assert reader.get_meta_data()["fps"] == 8
    assert reader.count_frames() == family.call["num_frames"]


def write_empty(folder: Path) -> Path:
    """A recipe without the embedded model's call arguments."""
    file = folder / "empty.yaml"
    file.write_text("job: {}\n")
    return file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.path=nowhere"], "no directory nowhere"),
        (["job.call.guidence_scale=2"], "nearest is 'guidance_scale'"),
        (["job.output=/proc/nope"], "cannot write to /proc/nope"),
        (["job.sed=1"], "nearest is 'job.seed'"),
    ],
)
def test_a_users_mistake_ends_with_one_line_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = generate(1, f"job.output={tmp_path}", *arguments)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: ") and message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model.path=nowhere", "error: model.path: no directory nowhere"),
        pytest.param(
            "mesh.shard=3",
            "error: mesh.shard=3 x mesh.replicate=all does not make 2 ranks; mesh.shard=2 does",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_mistake_ends_every_rank(tmp_path: Path, argument: str, message: str) -> None:
    result = generate(2, argument, f"job.output={tmp_path}")
    assert result.returncode != 0
    assert result.stderr.count(message) == 1


def test_help_and_print_config_teach() -> None:
    shown = generate(1, "--help").stdout
    assert "placement.<component>.share" in shown and "exit codes" in shown
    assert "seed: 11" in generate(1, "job.seed=11", "--print-config").stdout
