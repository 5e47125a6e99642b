import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from runner.config import DType, Rest, Share, describe, load_config, to_dict, to_yaml
from runner.errors import UserError
from runner.reading.words import quoted

ROOT = Path(__file__).resolve().parents[2]


def test_defaults_then_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("job: {seed: 3, images_per_prompt: 2}\n")
    config = load_config(file, ["job.seed=7", "placement.vae.share=shard", "placement.default.rest=host"])
    assert (config.job.seed, config.job.images_per_prompt) == (7, 2)
    assert config.placement["vae"].share is Share.shard
    assert config.placement["default"].rest is Rest.host
    assert config.model.dtype is DType.float32


def test_printed_config_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "generate.yaml", ["job.call.width=32", "placement.vae.window=all"])
    file = tmp_path / "printed.yaml"
    file.write_text(to_yaml(config))
    assert load_config(file, []) == config


def test_the_whole_mesh_may_be_left_to_the_runner(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("mesh: auto\n")
    for config in (load_config(file, []), load_config(None, ["mesh=auto"])):
        assert (config.mesh.guidance, config.mesh.context, config.mesh.shard) == ("auto", "auto", None)
    config = load_config(file, ["mesh.context=2", "mesh.shard=4"])
    assert (config.mesh.guidance, config.mesh.context, config.mesh.shard) == ("auto", 2, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mesh=fast", "mesh"),
        ("mesh.context=0", "mesh.context is 0; it must be at least 1, or auto"),
        ("mesh.guidance=fast", "mesh.guidance is 'fast'; it must be at least 1, or auto"),
        ("job.sed=1", "nearest is 'job.seed'"),
        ("placement.vae.shre=shard", "nearest is 'placement.vae.share'"),
        ("jobb.seed=1", "nearest is 'job.seed'"),
        ("job.seed=abc", "job.seed"),
        ("model.dtype=float31", "float32, bfloat16, float16"),
        ("job.images_per_prompt=0", "at least 1"),
        ("placement.vae.window=0", "placement.vae.window"),
        ("placement.vae.resident_blocks=-1", "resident_blocks"),
        ("seven", "key=value"),
        ("job.call=3", "job.call"),
        ("ip_adapter.path=a", "adapters that take pictures are not loaded"),
        ("model.textual_inversion=a", "textual inversions are not loaded"),
    ],
)
def test_wrong_overrides_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("job: [", r"c\.yaml:2: did not find"),
        ("- a\n- b", r"c\.yaml is \['a', 'b'\], and no mapping of sections"),
        ("a cat", "no mapping of sections"),
        ("model: {}\njob:\n  seed: 1\n  seed: 2\n", r"c\.yaml:3: 'seed' is there twice"),
        (b"\x89PNG\r\n", r"c\.yaml:1: the file is not UTF-8"),
        ("job: {seed: 1}\n".encode("utf-16"), "not UTF-8"),
        ("job: {seed: 1}\n".encode("utf-16-le"), r"c\.yaml:1: .* NUL character; save the file as UTF-8"),
        ("job:\n  prompt: a\x1bb\n", r"c\.yaml:2: .*control character"),
        ("[" * 100_000, "nested more than 20 deep"),
        ("&a [*a]", "more than 10,000 values"),
        ("job: {prompt: !!int x}", r"c\.yaml:1: ValueError"),
        ("# " * 1_000_000, "2,000,000 bytes"),
        ("job:\n  promt: a", r"c\.yaml: unknown key 'job\.promt'; the nearest is 'job\.prompt'"),
        ("job.seed: 3", r"write job: and the rest below it"),
        ("job: 3", "job is 3, and no section"),
        ("job: {output: on}", "job.output is a text, which YAML reads as True; put it in quotes"),
        ("job: {call: {x: .nan}}", r"c\.yaml: job\.call\.x is nan"),
        ("job: {call: {x: !!set {a}}}", r"job\.call\.x is a set"),
        ("job: {call: {x: {1: 2}}}", "the name 1 is not text"),
        ("job: {seed: [1]}", "job.seed"),
        ("job: {prompt: 'costs ${5'}", r"job\.prompt: .*\$\{ itself is written \\\$\{"),
        ("job: {prompt: '${x}'}", "'x' not found"),
        ("lora: models/ink", r"each is a mapping, \{path: models/ink\}"),
    ],
)
def test_a_wrong_config_file_is_refused_in_one_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as refused:
        load_config(file, [])
    assert len(str(refused.value).splitlines()) == 1


def test_what_is_no_config_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link.yaml").symlink_to("/nowhere/else.yaml")
    for path, message in (
        (tmp_path / "nowhere.yaml", r"nowhere\.yaml: no such config file; check the path"),
        (tmp_path, "is a folder"),
        (Path("/dev/zero"), "a device or a pipe"),
        (tmp_path / "link.yaml", "a link to /nowhere/else.yaml"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(path, [])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"no such config file in {tmp_path}"):
        load_config(Path("nowhere.yaml"), [])


def test_a_file_is_read_as_yaml_less_what_turns_text_into_numbers(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "\ufeffmodel:\n# nothing\njob:\n  prompt: [12:30, 2024-01-02, =, 'a # b', 207] # a note\n  output: 2024\n"
        "  seed: 1_000\n  state_file: ${job.output}/state\n  stop_file: \\${x}\n"
        "  call: {a: &a [1, 1e3], b: *a, c: yes, d: 010, e: \\???}\n"
    )
    job = load_config(file, []).job
    assert job.prompt == ["12:30", "2024-01-02", "=", "a # b", 207]
    assert (job.output, job.seed, job.state_file, job.stop_file) == ("2024", 1000, "2024/state", "${x}")
    assert job.call == {"a": [1, 1000.0], "b": [1, 1000.0], "c": True, "d": "010", "e": "???"}


@pytest.mark.parametrize(
    "text", ["a ${b} \\${c}", "costs ${5", "???", "\\???", "12:30", "1._5e3", "a\n b ", "on", "'", "猫\u2028"]
)
def test_any_text_is_printed_and_reported_as_it_was_typed(tmp_path: Path, text: str) -> None:
    config = load_config(None, shlex.split(f"{quoted('job.prompt', text)} {quoted('job.call.x', text)}"))
    assert to_dict(config)["job"]["prompt"] == text and to_dict(config)["job"]["call"] == {"x": text}
    file = tmp_path / "printed.yaml"
    file.write_text(to_yaml(config))
    assert load_config(file, []) == config
    stock = OmegaConf.to_object(OmegaConf.load(file))
    assert stock["job"]["prompt"] == text and stock["job"]["call"]["x"] == text


def test_every_key_has_a_line_of_help() -> None:
    described = {key: text for key, _, text in describe()}
    assert all(described.values())
    assert {"model.path", "placement.<component>.share", "job.call.<argument>", "mesh.shard"} <= set(described)


def test_a_trace_is_asked_for_with_or_without_operators() -> None:
    assert [load_config(None, [f"job.profile={word}"]).job.profile for word in ("true", "false", "ops")] == [
        True, False, "ops",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"job\.profile is 'kernels'; it must be true, false or ops"):
        load_config(None, ["job.profile=kernels"])
