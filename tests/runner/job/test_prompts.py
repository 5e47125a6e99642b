"""Prompt files."""

import os
from pathlib import Path

import pytest
import torch

from runner.config import load_config
from runner.errors import UserError
from runner.job.prompts import Prompt, read_prompts
from runner.job.requests import requests_of, with_inputs
from runner.pipeline.open import open_pipeline
from runner.world import World


def _file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_text_lines(tmp_path: Path) -> None:
    path = _file(tmp_path, "p.txt", "\ufeffa cat\r\n\r\n  \n 7 dogs \nline\u2028inside")
    assert read_prompts(path) == [Prompt("a cat"), Prompt("7 dogs"), Prompt("line\u2028inside")]


def test_jsonl(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        "p.jsonl",
        '{"prompt": "a cat", "seed": 3, "guidance_scale": 2.5}\n\n'
        '{"class_labels": 207}\n{"prompt": "12", "seed": null}',
    )
    assert read_prompts(path) == [Prompt("a cat", 3, {"guidance_scale": 2.5}), Prompt(207), Prompt("12")]


def test_csv_values(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        "p.csv",
        "\ufeffprompt,seed,num_inference_steps,guidance_scale,flag,note\n"
        '12,5,20,4.5,true,x\n"a, b",,,1e-3,False,\n,,,,,\n"two\nlines"\n',
    )
    assert read_prompts(path) == [
        Prompt("12", 5, {"num_inference_steps": 20, "guidance_scale": 4.5, "flag": True, "note": "x"}),
        Prompt("a, b", None, {"guidance_scale": 0.001, "flag": False}),
        Prompt("two\nlines"),
    ]


def test_csv_class_labels(tmp_path: Path) -> None:
    assert read_prompts(_file(tmp_path, "p.csv", "class_labels,seed\n3,4\n")) == [Prompt(3, 4)]


@pytest.mark.parametrize(
    ("name", "content", "line", "says"),
    [
        ("p.txt", "", 1, "no prompts"),
        ("p.txt", "\n \n", 1, "no prompts"),
        ("p.csv", "prompt\n", 1, "no prompts"),
        ("p.txt", b"ok\n\xff\xfe", 2, "not UTF-8"),
        ("p.jsonl", '{"prompt": "a"}\n{oops', 2, "not JSON"),
        ("p.jsonl", "\n[1]", 2, "not an object"),
        ("p.jsonl", '{"prompt": ""}', 1, "no prompt"),
        ("p.jsonl", '{"prompt": 3}', 1, "not text"),
        ("p.jsonl", '{"prompt": "a", "class_labels": 3}', 1, "both"),
        ("p.jsonl", '{"class_labels": true}', 1, "class_labels"),
        ("p.jsonl", '{"prompt": "a", "seed": true}', 1, "seed True"),
        ("p.jsonl", '{"prompt": "a", "seed": 1.5}', 1, "seed 1.5"),
        ("p.jsonl", '{"prompt": "a", "seed": 18446744073709551616}', 1, "seed"),
        ("p.csv", "prompt,seed,seed\na,1,2\n", 1, "named twice"),
        ("p.csv", 'prompt,seed\n"a\nb",1\nc,d,2\n', 4, "3 columns"),
        ("p.csv", "prompt,seed\na,x\n", 2, "seed 'x'"),
        ("p.csv", 'prompt,seed\n"a,4\n', 2, "not CSV"),
        ("p.txt", "a cat\na dog\n".encode("utf-16"), 1, "not UTF-8"),
        ("p.txt", "a cat\na dog\n".encode("utf-16-le"), 1, "a NUL character; save the file as UTF-8, not UTF-16"),
        ("p.txt", "a\r\nb\x1b[0m", 2, "control character '\\x1b'"),
        ("p.csv", "prompt\na\x85\n", 2, "control character '\\x85'"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b\\u0000"}', 2, "prompt holds a NUL character"),
        ("p.jsonl", '{"prompt": "\\ud83d"}', 1, "half a character"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}', 1, "'prompt' is there twice"),
        ("p.jsonl", '{"prompt": "a", "x": NaN}', 1, "x is nan; give a finite number"),
        ("p.jsonl", '{"prompt": "a", "x": [1, -Infinity]}', 1, "x[1] is -inf"),
        ("p.jsonl", '{"prompt": "a", "x": {"y": 1e400}}', 1, "x.y is inf"),
        ("p.jsonl", '{"prompt": "a", "x": 1' + "0" * 400 + "}", 1, "x is a number beyond 64 bits"),
        ("p.jsonl", '{"prompt": "a", "x": 1' + "0" * 5000 + "}", 1, "not JSON"),
        ("p.jsonl", '{"prompt": "a", "lora": {"ink": 1' + "0" * 400 + "}}", 1, "lora.ink is a number beyond 64 bits"),
        ("p.jsonl", '{"prompt": "a", "lora": {"ink": NaN}}', 1, "lora.ink is nan"),
        ("p.jsonl", '{"prompt": "a", "x": ' + "[" * 500 + "]" * 500 + "}", 1, "nested more than 20 deep"),
        ("p.csv", "prompt,x\na,1\nb,nan\n", 3, "x is nan; give a finite number"),
        ("p.csv", "prompt,x\na,-Inf\n", 2, "x is -Inf"),
        ("p.csv", "prompt,x\na,1e400\n", 2, "x is inf"),
        ("p.csv", "prompt,x\na,1" + "0" * 400 + "\n", 2, "x is a number beyond 64 bits"),
        ("p.csv", "prompt\n" + "a" * 200_000, 2, "not CSV"),
        ("p.txt", "a\n" + "b" * 2_000_000, 2, "a line of more than 1,048,576 bytes"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, name: str, content: str | bytes, line: int, says: str) -> None:
    path = _file(tmp_path, name, content)
    with pytest.raises(ValueError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert says in str(caught.value)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "link.txt").symlink_to("/nowhere/p.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "huge.txt").touch()
    os.truncate(tmp_path / "huge.txt", 300 << 20)
    for name, says in (
        ("none.txt", "no such prompt file"),
        ("p.yaml", "'.yaml'"),
        ("folder.txt", "is a folder"),
        ("link.txt", "a link to /nowhere/p.txt"),
        ("zero.txt", "a device or a pipe"),
        ("pipe.txt", "a device or a pipe"),
        ("huge.txt", "a line of more than"),
        ("x" * 300 + ".txt", "File name too long"),
    ):
        with pytest.raises(UserError, match=says) as refused:
            read_prompts(tmp_path / name)
        assert str(refused.value).startswith(str(tmp_path / name))


def test_a_column_or_field_named_with_a_hash_is_left_out(tmp_path: Path) -> None:
    rows = _file(tmp_path, "p.csv", "prompt,#note,#note,seed\na,nan,x,3\n")
    assert read_prompts(rows) == [Prompt("a", 3)]
    lines = _file(tmp_path, "p.jsonl", '{"prompt": "a", "#note": NaN, "seed": 3}')
    assert read_prompts(lines) == [Prompt("a", 3)]


def test_a_prompt_knows_its_line(tmp_path: Path) -> None:
    for name, content in (
        ("p.txt", "\na\n\nb"),
        ("p.csv", 'prompt\n"a"\n\nb'),
        ("p.jsonl", '\n{"prompt": "a"}\n\n{"prompt": "b"}'),
    ):
        path = _file(tmp_path, name, content)
        assert [prompt.where for prompt in read_prompts(path)] == [f"{path}:2", f"{path}:4"]


def test_planning_names_the_line_of_what_is_wrong_for_the_pipeline(tmp_path: Path, emoji: Path) -> None:
    config = load_config(None, [f"model.path={emoji}", "job.images_per_prompt=2"])
    pipeline = open_pipeline(config, World(0, 1, torch.device("cpu")))
    for name, content, says in (
        ("p.csv", "prompt,guidance\na,\nb,2\n", r"p\.csv:3: guidance is no argument of .*'guidance_scale'; named #"),
        ("p.jsonl", '{"prompt": "a", "generator": 1}', r"p\.jsonl:1: generator is set by the runner"),
        ("p.jsonl", '{"class_labels": 3}', r"""p\.jsonl:1: .* takes text, not the label 3"""),
        ("p.jsonl", '{"seed": 1}', r"p\.jsonl:1: no prompt; give 'prompt' a value"),
        ("p.csv", "prompt,seed\n,4\n", r"p\.csv:2: no prompt"),
        ("p.csv", "text,seed\na,1\n", r"p\.csv:2: text is no argument"),
        ("p.jsonl", '{"prompt": "a", "seed": 18446744073709551615}', r"p\.jsonl:1: seed is 18446744073709551615 to"),
    ):
        prompts = read_prompts(_file(tmp_path, name, content))
        with pytest.raises(UserError, match=says):
            prompts, _ = with_inputs(prompts, config.job, pipeline.arguments, None)
            requests_of(prompts, config.job, pipeline, {})
