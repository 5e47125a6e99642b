"""Whatever is typed, or is in a file: it arrives as it is, or is refused in one line; never another exception."""

import json
import shlex
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from runner.config import RunConfig, describe, load_config, to_yaml
from runner.errors import UserError
from runner.job.prompts import read_prompts
from runner.reading.values import STRAY
from runner.reading.words import quoted

# The same examples at each run, each of them within the time.
fuzz = settings(derandomize=True, database=None, deadline=timedelta(seconds=5), max_examples=40)

# What YAML, OmegaConf, JSON or a terminal give a meaning, more often than chance would have it.
PIECES = st.sampled_from(
    [
        *"#&*!|>%@`'\"{}[],:?-=~$\\. \t\n\u2028\x85\ufeff\ud800\x00\x1bé猫",
        *(" #", ": ", "${", "\\${", "}", "???", "&a ", "*a", "<<", "---", "...", "!!int ", "!!set ", "a cat"),
        *("12:30", "1e3", "010", "null", "yes", ".nan", "-.inf", "1e400", "0x_", "9" * 30, "prompt", "seed"),
        *("${oc.env:HOME}", "${oc.decode:", "${oc.create:{a: 1}}"),
    ]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=8).map("".join), st.text(max_size=20))
# What a text may be, and more than an empty one.
CLEAN = TEXTS.filter(lambda text: text and STRAY.search(text) is None)
KEYS = st.sampled_from([key.replace("<component>", "vae").replace("<argument>", "x") for key, _, _ in describe()])


def loaded(file: Path | None, words: list[str]) -> RunConfig | None:
    return ends_well(lambda: load_config(file, words))


def ends_well(read: Callable[[], Any]) -> Any:
    """What is read, or None where it is refused in one line."""
    try:
        return read()
    except UserError as error:
        message = str(error)
        assert message and len(message.splitlines()) == 1 and len(message) < 2000
        return None


def in_file(name: str, content: str | bytes, read: Callable[[Path], Any]) -> Any:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return read(path)


def is_written_otherwise(text: str) -> bool:
    """What words.py says of itself: a list, a quoted text and a class label are not taken as they are typed."""
    bare = text.strip()
    ends = bare[:1] + bare[-1:]
    return not bare or ends in ("[]", "''", '""') or bare.lstrip("-").isdecimal()


@fuzz
@given(CLEAN)
@example("???")
@example("\\\\???")
@example("\\${a}")
@example("a\\\\${")
def test_a_prompt_is_what_was_typed(text: str) -> None:
    config = loaded(None, [f"job.prompt={text}"])
    assert is_written_otherwise(text) or (config is not None and config.job.prompt == text)


@fuzz
@given(CLEAN)
def test_the_way_to_write_a_text_is_right_for_every_text(text: str) -> None:
    (word,) = shlex.split(quoted("job.prompt", text))
    assert load_config(None, [word]).job.prompt == text
    (word,) = shlex.split(quoted("job.call.negative_prompt", text))
    assert load_config(None, [word]).job.call == {"negative_prompt": text}


@fuzz
@given(st.lists(CLEAN, min_size=1, max_size=3), CLEAN)
@example(["1._5e3"], "=")
def test_a_printed_config_reads_back_the_same(prompts: list[str], other: str) -> None:
    config = RunConfig()
    config.job.prompt, config.job.call = prompts, {"x": other, "y": {"z": [other, 1, 0.1, None, True]}}
    printed = to_yaml(config)
    assert in_file("c.yaml", printed, lambda file: load_config(file, [])) == config
    stock = OmegaConf.to_container(OmegaConf.create(printed), resolve=True)
    assert isinstance(stock, dict) and stock["job"]["prompt"] == prompts and stock["job"]["call"] == config.job.call


@fuzz
@given(KEYS, TEXTS)
def test_any_word_ends_well(key: str, text: str) -> None:
    config = loaded(None, [f"{key}={text}"])
    if config is not None:
        assert in_file("c.yaml", to_yaml(config), lambda file: load_config(file, [])) == config


@fuzz
@given(TEXTS, TEXTS)
def test_any_key_ends_well(key: str, text: str) -> None:
    loaded(None, [key])
    loaded(None, [f"job.call.{key}={text}"])
    loaded(None, [f"{key}={text}"])


@fuzz
@given(
    KEYS,
    st.lists(TEXTS, min_size=1, max_size=4),
    st.sampled_from(["{}", "'{}'", '"{}"', "[{}]", "{{a: {}}}", "|\n  {}"]),
)
def test_any_value_in_a_config_file_ends_well(key: str, texts: list[str], form: str) -> None:
    *sections, name = key.split(".")
    value = "".join(texts)
    lines = [*(f"{'  ' * depth}{section}:" for depth, section in enumerate(sections))]
    text = "\n".join([*lines, f"{'  ' * len(sections)}{name}: {form.format(value)}"])
    config = in_file("c.yaml", text, lambda file: loaded(file, []))
    if config is not None:
        assert in_file("c.yaml", to_yaml(config), lambda file: load_config(file, [])) == config


@fuzz
@given(st.one_of(st.lists(TEXTS, max_size=6).map("\n".join), st.binary(max_size=40)))
@example("&a [*a]")
@example(
    "a: &a [b]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9))
)
@example("[" * 100_000)
@example("{a: " * 100_000)
@example("- " * 10_000)
@example("job: {prompt: [" + "a, " * 20_000 + "]}")
def test_any_config_file_ends_well(content: str | bytes) -> None:
    in_file("c.yaml", content, lambda file: loaded(file, []))


ROWS = st.one_of(
    st.lists(TEXTS, max_size=6).map("\n".join),
    st.binary(max_size=60),
    st.lists(TEXTS, max_size=3).map(lambda texts: "prompt,seed,x\n" + ",".join(texts)),
    st.tuples(st.sampled_from(["prompt", "seed", "x", "lora", "class_labels", "#x"]), TEXTS).map(
        lambda pair: f'{{"prompt": "a", "{pair[0]}": {pair[1]}}}'
    ),
)


@fuzz
@given(st.sampled_from([".txt", ".jsonl", ".csv"]), ROWS)
@example(".jsonl", '{"prompt": "a", "x": NaN}')
@example(".jsonl", '{"prompt": "a", "lora": {"ink": ' + "9" * 400 + "}}")
@example(".jsonl", '{"prompt": "a", "x": ' + "[" * 500 + "]" * 500 + "}")
@example(".jsonl", "[" * 200_000)
@example(".csv", "prompt,x\na," + "9" * 5000)
@example(".csv", "prompt\n" + "a" * 200_000)
@example(".txt", "a" * 3_000_000)
def test_any_prompt_file_ends_well(suffix: str, content: str | bytes) -> None:
    prompts = in_file("p" + suffix, content, lambda path: ends_well(lambda: read_prompts(path)))
    for prompt in prompts or []:
        assert "p" + suffix + ":" in prompt.where
        json.dumps(prompt.call, allow_nan=False)
