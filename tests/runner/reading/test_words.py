"""`key=value` on the command line: a text arrives as it was typed, or is refused with the way to write it."""

import shlex
from typing import Any

import pytest

from runner.config import RunConfig, load_config
from runner.errors import UserError
from runner.reading.schema import annotation_of


def value(word: str) -> Any:
    """What the configuration holds at the word's key."""
    held: Any = load_config(None, [word])
    for name in word.partition("=")[0].split("."):
        held = held[name] if isinstance(held, dict) else getattr(held, name)
    return held


TEXTS = (
    "a cat #1, trending",
    "&x cat",
    "*x cat",
    "12:30",
    "2024-01-02",
    "007",
    "Photo: a cat",
    "${oc.env:HOME}",
    "costs ${5",
    "\\${a}",
    "???",
    "'tis a cat",
    '"a" and "b"',
    "[masterpiece] a cat",
    "{a",
    "- a cat",
    "!important",
    " a cat ",
    "two\nlines\u2028",
    "猫",
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["job.prompt", "job.output", "model.path", "job.call.negative_prompt"])
def test_a_text_is_what_was_typed(key: str, text: str) -> None:
    assert value(f"{key}={text}") == text


@pytest.mark.parametrize("text", ["null", "yes", "1.5", "9" * 30])
@pytest.mark.parametrize("key", ["job.prompt", "job.output"])
def test_a_text_that_looks_like_a_value_is_a_text(key: str, text: str) -> None:
    assert value(f"{key}={text}") == text


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("job.prompt=207", 207),
        ("job.prompt='207'", "207"),
        ('job.prompt="a\\tcat # 1"', "a\tcat # 1"),
        ("job.prompt='it''s'", "it's"),
        ('job.prompt=""', ""),
        ("job.prompt=[a fox, a flat burger]", ["a fox", "a flat burger"]),
        ("job.prompt=[12:30, yes, 1.5, null, 207, '207']", ["12:30", "yes", "1.5", "null", 207, "207"]),
        ('job.prompt=["a #1", "${x}"]', ["a #1", "${x}"]),
        ("job.prompt=\n[a,\n b]\n", ["a", "b"]),
        ("job.prompts=null", None),
        ("job.prompts=${x}.txt", "${x}.txt"),
        ("job.part=1/4", "1/4"),
        ("job.seed=010", 10),
        ("job.seed=-3", -3),
        ("job.timeout_seconds=1e3", 1000.0),
        ("job.lock=no", False),
        ("placement.vae.window=all", "all"),
        ("placement.vae.window=3", 3),
        ("mesh.shard=null", None),
        ("job.call.width=64", 64),
        ("job.call.guidance_scale=1e-3", 0.001),
        ("job.call.clean=false", False),
        ("job.call.latents=null", None),
        ("job.call.sigmas=[1, .5]", [1, 0.5]),
        ("job.call.kwargs={scale: 2, name: 12:30}", {"scale": 2, "name": "12:30"}),
        ("job.call.kwargs.scale=2", 2),
        ("job.call.text='5'", "5"),
    ],
)
def test_a_value_is_what_its_key_takes(word: str, expected: Any) -> None:
    assert value(word) == expected and type(value(word)) is type(expected)


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("[a cat #1, trending]", "[a cat #1, trending]"),
        ("[&x cat]", "[&x cat]"),
        ("[*x, a]", "[*x, a]"),
        ("[!x a]", "[!x a]"),
        ("[a], [b]", "[a], [b]"),
        ("[a\nb]", "[a\nb]"),
        ('"a\\qb"', "a\\qb"),
        ('"a\nb"', "a\nb"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("key", ["job.prompt", "job.call.negative_prompt"])
def test_what_yaml_would_change_is_refused_with_the_way_to_write_it(key: str, typed: str, text: str) -> None:
    with pytest.raises(UserError, match=key) as refused:
        load_config(None, [f"{key}={typed}"])
    message = str(refused.value)
    (advised,) = shlex.split(message[message.rindex(f"'{key}=") :].split(" where it is one text")[0])
    assert value(advised) == text


@pytest.mark.parametrize("typed", ["[Photo: a cat]", "[[a]]", "[{a: b}]"])
def test_a_list_of_prompts_holds_texts(typed: str) -> None:
    with pytest.raises(UserError, match=r'quote each text, as in .job\.prompt=\["a cat #1", "a dog"\]'):
        load_config(None, [f"job.prompt={typed}"])
    assert load_config(None, ['job.prompt=["a cat #1", "a dog"]']).job.prompt == ["a cat #1", "a dog"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("job.output=", "job.output is empty.*unset"),
        ("job.output=''", "job.output is an empty text"),
        ("job.seed=", "job.seed is empty"),
        ("lora=models/ink", r"""write 'lora=\[\{path: "models/ink"\}\]'"""),
        ("lora=[models/ink]", r"each is a mapping, \{path: models/ink\}"),
        ("lora=[{path: a #b}]", "comment"),
        ("lora=[{path: on}]", r"adapters\[0\]\.path is a text, which YAML reads as True"),
        ("lora=[{pth: a}]", r"nearest is 'lora\.adapters\[0\]\.path'"),
        ("placement.vae=host", r"write its keys one by one, placement\.vae\.KEY=VALUE"),
        ("placement={vae: host}", "placement.vae is 'host', and no section"),
        ("job.prompt=a\x1bb", r"job\.prompt holds the control character '\\x1b'"),
        ("job.prompt=caf\udce9", "bytes that are not UTF-8"),
        ("job.output=" + "a" * 256, "too long"),
        ("job.prompt.x=1", "nearest is 'job.prompt'"),
        ("job.width=64", r"job\.call\.width"),
        ("prompt=a", "nearest is 'job.prompt'"),
        ("job.call.=1", "unknown key"),
    ],
)
def test_wrong_words_are_refused_in_one_line(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        load_config(None, [word])
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1e400", "1" + "0" * 400, "1" + "0" * 5000, str(2**64)])
@pytest.mark.parametrize(
    "word",
    [
        "job.call.x={}",
        "job.call.x=[1, {}]",
        "job.call.x={{a: {}}}",
        "lora=[{{path: a, strength: {}}}]",
        "job={{timeout_seconds: {}}}",
        "job.grace_seconds={}",
        "job.lock_wait_seconds={}",
        "job.seed={}",
    ],
)
def test_no_number_is_refused_by_its_key(word: str, number: str) -> None:
    with pytest.raises(UserError, match=word.partition("=")[0]) as refused:
        load_config(None, [word.format(number)])
    assert len(str(refused.value)) < 500


def test_seeds_stay_within_64_bits() -> None:
    last = 2**64 - 1
    assert load_config(None, [f"job.seed={last}"]).job.seed == last
    with pytest.raises(UserError, match=r"job\.seed is .* beyond 64 bits"):
        load_config(None, [f"job.seed={last}", "job.images_per_prompt=2"])


def test_what_a_key_takes_is_read_off_the_dataclasses() -> None:
    assert annotation_of(RunConfig, "placement.vae.window") == int | str
    assert annotation_of(RunConfig, "job.call.a.b") is Any
    assert annotation_of(RunConfig, "job.prompt.a") is None and annotation_of(RunConfig, "job.call.") is None
