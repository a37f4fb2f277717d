"""CLIP's tokens against transformers' tokenizer on one vocabulary and a thousand awkward strings."""

import json
import random

import numpy as np
import pytest
import tokenizers

from nuwaxl_jax.data import clip_bpe

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

PIECES = (
    *("a photo of a cat", "it's", "I'LL", "they've", "don't", "x'S", "'", "''s", "1234", "3.14", "½", "Ⅷ", "²"),
    *("naïve", "nai\u0308ve", "A\u030a", "ﬁne", "Straße", "İstanbul", "ǅ", "Ελληνικά", "ΣΊΣΥΦΟΣ", "русский"),
    *("עברית", "العربية", "हिन्दी", "ไทย", "日本語", "한국어", "\u1112\u1161\u11ab", "🙂"),
    *("👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "e\u0301\u0323", "\u200b", "\ufeff", "\u00ad"),
    *(" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\x00", "\x07", "\x1b[0m", "\u2028", "\x85"),
    *("<|startoftext|>", "<|endoftext|>", "<|ENDOFTEXT|>", "<|endoftext|>s", "<|", "|>"),
    *("&amp;", "<b>", "!!!", "...", "—", "C++", "#1", "@you", "50%", "$5", "a_b", "__init__"),
    *("http://x.y/z?a=b&c", "a" * 90, "ab" * 60, "\U0010ffff", "\ud7ff"),
)
CORPUS = "a photo of a cat and a dog in the snow at night . naïve русский 日本語 it's they've don't 1234 <b> !!! " * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vocabulary in CLIP's form, learnt from a few sentences."""
    place = tmp_path_factory.mktemp("tokenizer")
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=700, end_of_word_suffix="</w>", show_progress=False)
    engine.train_from_iterator([CORPUS], trainer)
    merges = [tuple(m) for m in json.loads(engine.to_str())["model"]["merges"]]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(m) for m in merges), clip_bpe.BOS, clip_bpe.EOS]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (place / "vocab.json").write_text(json.dumps(ids))
    (place / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in merges)]))
    return place, len(ids)


def awkward(count):
    rng = random.Random(0)
    for _ in range(count):
        parts = rng.choices(PIECES, k=rng.randint(0, 9))
        for _ in range(rng.randint(0, 3)):  # any character at all, surrogates apart
            number = rng.choice([rng.randint(0, 0xD7FF), rng.randint(0xE000, 0x1FFFF)])
            parts.insert(rng.randint(0, len(parts)), chr(number))
        yield rng.choice(["", " "]).join(parts)


def test_a_thousand_awkward_strings(folder):
    place, size = folder
    theirs = transformers.CLIPTokenizer.from_pretrained(str(place), model_max_length=77)
    ours = clip_bpe.CLIPTokenizer(size, 77, str(place))
    strings = list(awkward(1000))
    wanted = theirs(strings, padding="max_length", truncation=True, max_length=77)["input_ids"]
    different = [s for s, w in zip(strings, wanted) if ours.encode(s).tolist() != w]
    assert not different, (len(different), different[:5])
    lengths = [w.index(ours.encode("")[1]) for w in wanted]
    assert max(lengths) == 76 and len(set(lengths)) > 40 and np.unique(wanted).size > 250
