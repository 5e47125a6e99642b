"""Captions say what scenes show, in words that the tokenizer knows."""

import random

import pytest
import torch

from scripts.emoji.captions import OFF_CENTRE, CaptionWriter, build_tokenizer, vocabulary, words
from scripts.emoji.concepts import BACKGROUNDS, CONCEPTS
from scripts.emoji.pictures import Scenes, draw_icons


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return draw_icons(4, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def captions(scenes: Scenes) -> list[str]:
    return CaptionWriter(0).write(scenes)


def test_every_word_but_the_unknown_one_is_in_the_vocabulary(captions: list[str]) -> None:
    assert {word for caption in captions for word in words(caption)} - set(vocabulary()) == {"xyzzy"}


def test_a_tenth_of_the_captions_is_empty(captions: list[str]) -> None:
    assert captions.count("") / len(captions) == pytest.approx(0.1, abs=0.02)


def test_captions_name_their_concept_and_any_colour_behind_it(scenes: Scenes, captions: list[str]) -> None:
    colours = list(BACKGROUNDS)
    for concept, background, caption in zip(scenes.concept, scenes.background, captions, strict=True):
        if caption:
            assert any(name in caption for name in CONCEPTS[concept].names)
            assert colours[background] in caption or colours[background] == "white"


def test_captions_name_only_the_side_that_the_thing_is_on(scenes: Scenes, captions: list[str]) -> None:
    signs = {"on the left": (0, -1), "on the right": (0, 1), "at the top": (1, -1), "at the bottom": (1, 1)}
    named = [
        (shift, *signs[side])
        for shift, text in zip(scenes.shift, captions, strict=True)
        for side in signs
        if side in text
    ]
    assert len(named) > 50
    assert all(shift[axis] * sign > OFF_CENTRE for shift, axis, sign in named)


def test_two_writers_with_one_seed_write_the_same(scenes: Scenes, captions: list[str]) -> None:
    state = random.getstate()
    assert CaptionWriter(0).write(scenes) == captions
    assert random.getstate() == state, "the writer must not touch the process's random state"


@pytest.mark.parametrize("text", ["A Red Apple!", "a red, apple", "  a   réd apple... "])
def test_the_tokenizer_is_blind_to_case_accents_and_punctuation(text: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer(text).input_ids == tokenizer("a red apple").input_ids


def test_unknown_words_become_one_unknown_token_each() -> None:
    assert build_tokenizer().tokenize("a majestic cat") == ["a", "<unk>", "cat"]


def test_an_empty_prompt_still_has_a_token_to_attend_to() -> None:
    assert build_tokenizer()("").input_ids == [build_tokenizer().eos_token_id]
