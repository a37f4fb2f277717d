"""Captions as token ids: a closed list of words plus hash buckets, no download; or CLIP's (`clip_bpe`).

Id 0 pads, 1 begins and 2 ends a caption. The words of the toons captions and
punctuation have ids of their own (`KNOWN_WORDS`, part of every checkpoint:
append to it, never reorder). Any other word goes to one of the remaining ids by
CRC-32, which is the same on every machine. The empty caption, bos eos pad ...,
is the null prompt of classifier-free guidance.
"""

import dataclasses
import functools
import re
from typing import Protocol
import unicodedata
import zlib

import ml_collections
import numpy as np

from nuwaxl_jax.data import characters
from nuwaxl_jax.data import clip_bpe

PAD, BOS, EOS = 0, 1, 2
_FIRST_WORD = 3
_FIRST_BUCKET = 60  # ids before it are kept for KNOWN_WORDS, so that appending a word moves no bucket

KNOWN_WORDS = (
    "a", "and", "small", "big", "red", "yellow", "green", "blue", "purple", "pink", "circle", "square", "triangle",
    "star", "stands", "walks", "left", "right", "jumps", "enters", "leaves", "in", "the", "desert", "forest", "on",
    "beach", "city", "snow", "at", "night",
    ".", ",", "!", "?", "'", '"', "-", ":", ";",
)  # fmt: skip

_WORD_IDS = {word: _FIRST_WORD + i for i, word in enumerate(KNOWN_WORDS)}
_WORDS = re.compile(r"\w+|[^\w\s]")


def split_words(caption: str) -> list[str]:
    """Lower-case words and single punctuation marks of a caption (Unicode NFKC); half a character is U+FFFD."""
    return _WORDS.findall(unicodedata.normalize("NFKC", characters.whole(caption)).lower())


@functools.lru_cache(maxsize=65536)
def _encode(caption: str, vocab_size: int, max_tokens: int) -> np.ndarray:
    ids = np.zeros(max_tokens, np.int32)
    ids[0] = BOS
    words = split_words(caption)[: max_tokens - 2]
    for position, word in enumerate(words, start=1):
        bucket = _FIRST_BUCKET + zlib.crc32(word.encode("utf-8")) % (vocab_size - _FIRST_BUCKET)
        ids[position] = _WORD_IDS.get(word, bucket)
    ids[len(words) + 1] = EOS
    ids.setflags(write=False)
    return ids


@dataclasses.dataclass(frozen=True)
class WordTokenizer:
    """Token ids of captions.

    Attributes:
      vocab_size: ids are below it; more means fewer unknown words that share one.
      max_tokens: N, bos and eos included; longer captions lose their end but keep eos.
    """

    vocab_size: int
    max_tokens: int

    def __post_init__(self):
        if self.vocab_size <= _FIRST_BUCKET:
            raise ValueError(f"text.vocab_size is {self.vocab_size}; it must be more than {_FIRST_BUCKET}.")
        if self.max_tokens < 3:
            raise ValueError(f"text.max_tokens is {self.max_tokens}; it must be at least 3 (bos, one word, eos).")

    def encode(self, caption: str) -> np.ndarray:
        """int32 [N], read-only: bos, words, eos, pad; '' is the null prompt."""
        return _encode(caption, self.vocab_size, self.max_tokens)

    def encode_batch(self, captions: list[str]) -> np.ndarray:
        """int32 [n, N] for n captions; repeated captions cost a look-up."""
        ids = np.zeros((len(captions), self.max_tokens), np.int32)
        for row, caption in enumerate(captions):
            ids[row] = _encode(caption, self.vocab_size, self.max_tokens)
        return ids

    def decode(self, ids: np.ndarray) -> str:
        """The words of int [N] ids up to eos; a hash bucket reads '<id>', for it stands for many words."""
        words = []
        for token in np.asarray(ids).tolist():
            if token == EOS:
                break
            if token in (PAD, BOS):
                continue
            known = _FIRST_WORD <= token < _FIRST_WORD + len(KNOWN_WORDS)
            words.append(KNOWN_WORDS[token - _FIRST_WORD] if known else f"<{token}>")
        return re.sub(r" ([.,!?;:])", r"\1", " ".join(words))


class Tokenizer(Protocol):
    """What the rest asks of a tokenizer: `WordTokenizer`, or `clip_bpe.CLIPTokenizer`."""

    vocab_size: int
    max_tokens: int

    def encode(self, caption: str) -> np.ndarray:
        """int32 [N]; '' is the null prompt."""

    def encode_batch(self, captions: list[str]) -> np.ndarray:
        """int32 [n, N]."""

    def decode(self, ids: np.ndarray) -> str:
        """The caption, as far as ids tell."""


def tokenizer_of(section: ml_collections.ConfigDict) -> Tokenizer:
    """The tokenizer of `config.text`."""
    return make_tokenizer(
        section.tokenizer,
        vocab_size=section.vocab_size,
        max_tokens=section.max_tokens,
        vocabulary=section.vocabulary,
    )


def make_tokenizer(name: str, *, vocab_size: int, max_tokens: int, vocabulary: str = "") -> Tokenizer:
    """The tokenizer that `text.tokenizer` names; `vocabulary` is read by 'clip_bpe' alone, and not before it is used.

    Raises:
      ValueError: for an unknown name.
    """
    if name == "words":
        return WordTokenizer(vocab_size, max_tokens)
    if name == "clip_bpe":
        return clip_bpe.CLIPTokenizer(vocab_size, max_tokens, vocabulary)
    raise ValueError(f"text.tokenizer is {name!r}; choose words or clip_bpe.")
