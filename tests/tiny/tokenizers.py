"""Real fast tokenizers, made offline from a few dozen words, the same in every process.

Every class is the one a released checkpoint names, so saving, `model_index.json` and loading take the stock path.
Words outside the vocabulary fall apart into shorter pieces, so any two prompts in printable ASCII get different ids.
"""

import string
from typing import TypeVar

from transformers import CLIPTokenizer, GemmaTokenizer, LlamaTokenizer, Qwen2Tokenizer, T5Tokenizer
from transformers.tokenization_utils_tokenizers import TokenizersBackend

CLIP_LENGTH = 77
VOCAB_SIZE = 1024

# The words of the prompts, then those of the templates that QwenImage and HunyuanVideo put around a prompt. Both cut a
# fixed number of template tokens off the embeddings (34 and 95, counted with the released vocabularies). With every
# template word a single token the cut falls close to where it does there, and never into the prompt.
VOCABULARY = """
a red fox in the deep snow , blue whale under bright moon an old clock on wall blurry
system user assistant describe image video by detailing following aspects main content and theme of color shape size
texture quantity text spatial relationships objects background actions events behaviors temporal physical movement
changes environment light style atmosphere camera angles movements transitions used
"""
PRINTABLE = [character for character in string.printable if character.isprintable() and character != " "]

AnyTokenizer = TypeVar("AnyTokenizer", bound=TokenizersBackend)


def _trained(untrained: AnyTokenizer, *special_tokens: str) -> AnyTokenizer:
    """`untrained` with a vocabulary of its own kind.

    The corpus holds one word an entry, with and without a space in front: byte-level and metaspace models then both
    learn whole words, and no merge spans two of them.
    """
    words = VOCABULARY.split()
    words = [*words, *(word.capitalize() for word in words), *PRINTABLE, "\n"]
    corpus = [spaced for word in words for spaced in (word, f" {word}")]
    return untrained.train_new_from_iterator(
        corpus, VOCAB_SIZE, new_special_tokens=list(special_tokens), show_progress=False
    )


def clip_tokenizer() -> CLIPTokenizer:
    """A token for each character: a BPE trained with CLIP's end-of-word suffix numbers its pieces in hash order."""
    pieces = ["<|startoftext|>", "<|endoftext|>", *PRINTABLE, *(f"{character}</w>" for character in PRINTABLE)]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=CLIP_LENGTH)


def qwen2_tokenizer() -> Qwen2Tokenizer:
    return _trained(Qwen2Tokenizer(), "<|im_start|>", "<|im_end|>")


def llama_tokenizer() -> LlamaTokenizer:
    """Pads on the right, as HunyuanVideo's does: the class pads left, and the template cut would remove padding."""
    untrained = LlamaTokenizer(pad_token="<pad>", padding_side="right", add_bos_token=True)
    return _trained(untrained, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def gemma_tokenizer() -> GemmaTokenizer:
    """Begins with <bos>, as Sana's does: an empty negative prompt would otherwise mask out every token."""
    return _trained(GemmaTokenizer(add_bos_token=True))


def t5_tokenizer() -> T5Tokenizer:
    """Written out instead of trained: the unigram trainer wants more text than there is here."""
    special_tokens = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(f"▁{word}", -1.0) for word in VOCABULARY.split() if len(word) > 1]
    characters = [(character, -10.0) for character in ("▁", *PRINTABLE)]
    return T5Tokenizer(vocab=special_tokens + words + characters, extra_ids=0)
