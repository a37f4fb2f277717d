"""CLIP's byte-pair encoding on a vocabulary small enough to check by hand, and on its own files."""

import copy
import gzip
import json

import numpy as np
import pytest

from nuwaxl_jax.data import clip_bpe
from nuwaxl_jax.data import text

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789'!,.-"
MERGES = [("a", "t</w>"), ("c", "at</w>"), ("o", "n</w>"), ("s", "i"), ("t", "s</w>"), ("si", "ts</w>"), ("'", "s</w>")]


def vocabulary(pad=clip_bpe.EOS):
    tokens = [*LETTERS, *(c + "</w>" for c in LETTERS), *("".join(m) for m in MERGES), clip_bpe.BOS, clip_bpe.EOS]
    return clip_bpe.Vocabulary({t: i for i, t in enumerate(tokens)}, tuple(MERGES), pad)


@pytest.fixture(params=["vocab.json", "tokenizer.json"])
def folder(request, tmp_path):
    known = vocabulary()
    merges = [" ".join(m) for m in known.merges]
    if request.param == "vocab.json":
        (tmp_path / "vocab.json").write_text(json.dumps(known.ids))
        (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    else:
        (tmp_path / "tokenizer.json").write_text(json.dumps(dict(model=dict(vocab=known.ids, merges=merges))))
    return tmp_path


def tokens_of(tokenizer, caption):
    names = {i: t for t, i in vocabulary().ids.items()}
    return [names[i] for i in tokenizer.encode(caption).tolist()]


def test_by_hand(folder):
    tokenizer = text.make_tokenizer("clip_bpe", vocab_size=200, max_tokens=8, vocabulary=str(folder))
    bos, eos = clip_bpe.BOS, clip_bpe.EOS
    assert tokens_of(tokenizer, "  A CAT\n sits") == [bos, "a</w>", "cat</w>", "sits</w>", eos, eos, eos, eos]
    # Every digit is a word of its own, a suffix too; a word without merges falls into letters.
    assert tokens_of(tokenizer, "12 cat's") == [bos, "1</w>", "2</w>", "cat</w>", "'s</w>", eos, eos, eos]
    assert tokens_of(tokenizer, "dog") == [bos, "d", "o", "g</w>", eos, eos, eos, eos]
    assert tokens_of(tokenizer, "") == [bos] + [eos] * 7
    # Too long: the end goes, the end token stays.
    assert tokens_of(tokenizer, "on a cat, on a cat, on") == [
        bos, "on</w>", "a</w>", "cat</w>", ",</w>", "on</w>", "a</w>", eos,
    ]  # fmt: skip
    assert tokenizer.decode(tokenizer.encode("a CAT sits on")) == "a cat sits on"
    np.testing.assert_array_equal(tokenizer.encode_batch(["dog", ""])[1], tokenizer.encode(""))
    again = copy.deepcopy(tokenizer)  # as a worker gets it
    np.testing.assert_array_equal(again.encode("a cat"), tokenizer.encode("a cat"))


def test_half_a_character_stops_nothing(folder):
    tokenizer = text.make_tokenizer("clip_bpe", vocab_size=200, max_tokens=8, vocabulary=str(folder))
    assert tokens_of(tokenizer, "cat \ud83d sits")[1] == "cat</w>"


def test_pad_token_of_the_folder(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(pad_token={"content": "!"})))
    known = clip_bpe.read(str(folder))
    assert known.pad == "!" and clip_bpe.Vocabulary.from_json(known.to_json()) == known


def test_the_authors_own_file(tmp_path):
    """bpe_simple_vocab_16e6.txt.gz: 256 bytes, 256 at a word's end, 48,894 merges, two marks: 49,408."""
    lines = ["#version: 0.2", *(f"x{i} y{i}" for i in range(60_000))]
    (tmp_path / "bpe.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    known = clip_bpe.read(str(tmp_path / "bpe.txt.gz"))
    assert len(known.ids) == 49408 and len(known.merges) == 48894
    # Published ids: '!' is 0, its end form 256, begin 49406, end 49407.
    assert (known.ids["!"], known.ids["!</w>"], known.ids[clip_bpe.BOS], known.ids[clip_bpe.EOS]) == (
        0,
        256,
        49406,
        49407,
    )


@pytest.mark.parametrize("content", [{}, {"vocab.json": "{", "merges.txt": ""}, {"vocab.json": "{}", "merges.txt": ""}])
def test_a_bad_folder_is_one_line(tmp_path, content):
    for name, value in content.items():
        (tmp_path / name).write_text(value)
    with pytest.raises(clip_bpe.VocabularyError, match="^text.vocabulary: .*;") as error:
        text.make_tokenizer("clip_bpe", vocab_size=200, max_tokens=8, vocabulary=str(tmp_path)).encode("")
    assert "\n" not in str(error.value)


def test_no_vocabulary_is_refused_when_first_used(folder):
    lazy = text.make_tokenizer("clip_bpe", vocab_size=200, max_tokens=8)
    with pytest.raises(clip_bpe.VocabularyError, match="text.vocabulary: is empty"):
        lazy.encode("a")
    with pytest.raises(clip_bpe.VocabularyError, match="text.vocab_size: 20 is below"):
        text.make_tokenizer("clip_bpe", vocab_size=20, max_tokens=8, vocabulary=str(folder)).encode("a")
