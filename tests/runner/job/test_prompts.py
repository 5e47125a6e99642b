"""Prompt files."""

from pathlib import Path

import pytest

from runner.job.prompts import Prompt, read_prompts


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
        ("p.jsonl", '{"seed": 1}', 1, "no prompt"),
        ("p.jsonl", '{"prompt": ""}', 1, "no prompt"),
        ("p.jsonl", '{"prompt": 3}', 1, "not text"),
        ("p.jsonl", '{"prompt": "a", "class_labels": 3}', 1, "both"),
        ("p.jsonl", '{"class_labels": true}', 1, "class_labels"),
        ("p.jsonl", '{"prompt": "a", "seed": true}', 1, "seed True"),
        ("p.jsonl", '{"prompt": "a", "seed": 1.5}', 1, "seed 1.5"),
        ("p.jsonl", '{"prompt": "a", "seed": 18446744073709551616}', 1, "seed"),
        ("p.csv", "text,seed\na,1\n", 1, "no 'prompt' column"),
        ("p.csv", "prompt,seed,seed\na,1,2\n", 1, "named twice"),
        ("p.csv", 'prompt,seed\n"a\nb",1\nc,d,2\n', 4, "3 columns"),
        ("p.csv", "prompt,seed\na,x\n", 2, "seed 'x'"),
        ("p.csv", "prompt,seed\n,4\n", 2, "no prompt"),
        ("p.csv", 'prompt,seed\n"a,4\n', 2, "not CSV"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, name: str, content: str | bytes, line: int, says: str) -> None:
    path = _file(tmp_path, name, content)
    with pytest.raises(ValueError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(("name", "says"), [("none.txt", "no such"), ("p.yaml", "'.yaml'"), ("folder.txt", "cannot")])
def test_errors_name_the_file(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ValueError, match=says) as caught:
        read_prompts(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
