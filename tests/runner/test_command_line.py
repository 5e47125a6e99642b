"""scripts/generate.py: which word is what, and a mistake is one line and exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.config import load_config
from runner.errors import ExitCode
from scripts.generate import DEFAULT, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seven"], "'seven' is no config file"),
        (["job.prompt=a", "red", "fox"], 'a text with spaces is quoted, job.prompt="a red fox"'),
        (["a cat " * 100], "is no config file"),
        ([str(ROOT)], "is a folder"),
        ([str(ROOT / "models/emoji-dit/grid.png")], "not UTF-8"),
        ([str(ROOT / "README.md")], "README.md"),
        (["--job.seed=7"], "unrecognized arguments: --job.seed=7; settings are key=value"),
        (["job.sed=7"], "the nearest is 'job.seed'"),
        (["job.seed=seven"], "job.seed: Value 'seven'"),
        (["=3"], "'=3' is not key=value"),
        (["job.output=$\udcff"], "bytes that are not UTF-8"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--print-config"]) == ExitCode.WRONG
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and len(err.splitlines()) == 1 and says in err


def test_a_mistake_is_told_by_one_rank(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    for words in (["seven"], ["--sevn"]):
        assert main(words) == ExitCode.WRONG
    assert capsys.readouterr() == ("", "")


def test_what_is_printed_is_a_config_file_in_any_locale(tmp_path: Path) -> None:
    typed = "job.prompt=猫: costs ${5 #1"
    command = [sys.executable, str(ROOT / "scripts" / "generate.py"), typed, "--print-config"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    printed = tmp_path / "printed.yaml"
    printed.write_bytes(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)
    assert load_config(printed, []) == load_config(DEFAULT, [typed])


def test_files_are_laid_over_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, over = tmp_path / "base.yaml", tmp_path / "over.yaml"
    base.write_text("model:\n  path: ???\n  dtype: bfloat16\nplacement: {transformer: {share: shard}}\n")
    over.write_text("placement: {transformer: {rest: host, share: replicate}}\n")
    assert main([str(base), str(over), "--print-config"]) == ExitCode.WRONG  # ??? says that the user has to
    assert capsys.readouterr().err == "error: model.path has to be given: model.path=VALUE\n"

    assert main([str(base), "model.path=m", str(over), "--print-config"]) == ExitCode.DONE
    (printed := tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config = load_config(printed, [])
    assert config == load_config(base, ["model.path=m"], [over])
    assert (config.model.path, config.model.dtype.name) == ("m", "bfloat16")
    assert (config.placement["transformer"].share.name, config.placement["transformer"].rest.name) == (
        "replicate",
        "host",
    )
