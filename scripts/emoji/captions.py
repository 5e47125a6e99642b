"""Captions for scenes, and the word-level tokenizer that reads them."""

from __future__ import annotations

import random
import re

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .concepts import BACKGROUNDS, CONCEPTS, STYLES
from .pictures import Scenes

DROP_SHARE = 0.1  # captions left empty, which is what classifier-free guidance needs
STYLE_SHARE = 0.5  # the rest name no style, so that a seed picks one
SIZE_SHARE = PLACE_SHARE = 0.6  # of the scenes that are small, large or off the centre
UNKNOWN_SHARE = 0.15  # captions with a word outside the vocabulary in them
WHITE_NAMED_SHARE = 0.25  # the rest of the white pictures name no background

MAX_TOKENS = 64

_SUBJECTS = ("",) * 10 + ("a picture of ", "an image of ", "an icon of ", "a drawing of ", "an emoji of ")
_SMALL, _LARGE = ("small", "little", "tiny"), ("large", "big", "huge")
_STYLE_SUFFIXES = ("in {} style", "{} style", "in a {} style")
_PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
_BACKGROUND_SUFFIXES = ("on a {} background", "on {}", "with a {} background", "on {} background", "{} background")
_UNKNOWN = "xyzzy"

SMALL_BELOW, LARGE_ABOVE = 0.82, 0.95  # in scale
OFF_CENTRE = 0.12  # in shift


class CaptionWriter:
    """Writes a new caption for a scene each time it is asked; owns the random state."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def write(self, scenes: Scenes) -> list[str]:
        """One caption a scene."""
        return ["" if self._chance(DROP_SHARE) else self._caption(scenes, index) for index in range(len(scenes))]

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _caption(self, scenes: Scenes, index: int) -> str:
        choose = self._random.choice
        adjectives, suffixes = [], []
        size = self._size(scenes.scale[index].item())
        adjectives += [size] if size else []
        if self._chance(STYLE_SHARE):
            word = choose(STYLES[int(scenes.style[index])].words)
            if self._chance(0.5):
                adjectives.append(word)
            else:
                suffixes.append(choose(_STYLE_SUFFIXES).format(word))
        if self._chance(UNKNOWN_SHARE):
            choose((adjectives, suffixes)).append(_UNKNOWN)
        noun = " ".join([*adjectives, choose(CONCEPTS[int(scenes.concept[index])].names)])
        place = self._place(*scenes.shift[index].tolist())
        suffixes += [place] if place else []
        background = list(BACKGROUNDS)[int(scenes.background[index])]
        if background != "white" or self._chance(WHITE_NAMED_SHARE):
            suffixes.append(choose(_BACKGROUND_SUFFIXES).format(background))
        article = choose(("", "the ", indefinite_article(noun), indefinite_article(noun)))
        return " ".join([choose(_SUBJECTS) + article + noun, *suffixes])

    def _size(self, scale: float) -> str | None:
        if SMALL_BELOW <= scale <= LARGE_ABOVE or not self._chance(SIZE_SHARE):
            return None
        return self._random.choice(_SMALL if scale < SMALL_BELOW else _LARGE)

    def _place(self, right: float, down: float) -> str | None:
        offset = right if abs(right) > abs(down) else down
        if abs(offset) < OFF_CENTRE or not self._chance(PLACE_SHARE):
            return None
        names = ("left", "right") if offset is right else ("top", "bottom")
        return _PLACES[names[offset > 0]]


def indefinite_article(noun: str) -> str:
    """ "an " before a vowel, else "a "."""
    return "an " if noun[0] in "aeiou" else "a "


def words(text: str) -> list[str]:
    """The words of a text as the tokenizer splits it: lower case, without punctuation."""
    return re.findall("[a-z0-9]+", text.lower())


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    texts = [
        *_SUBJECTS,
        *_SMALL,
        *_LARGE,
        *_STYLE_SUFFIXES,
        *_PLACES.values(),
        *_BACKGROUND_SUFFIXES,
        *BACKGROUNDS,
        "the",
    ]
    texts += [name for concept in CONCEPTS for name in concept.names]
    texts += [word for style in STYLES for word in style.words]
    return sorted({word for text in texts for word in words(text)})


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer: blind to case, accents and punctuation; unknown words become <unk>.

    Each text ends with </s>, so that an empty prompt still has a token to attend to.
    """
    ids = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    clean = [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence([*clean, normalizers.Replace(Regex("[^a-z0-9]+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", ids["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )
