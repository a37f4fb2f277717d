"""Token ids are part of every checkpoint: known words must keep theirs, and no two may share one."""

import numpy as np
import pytest

from nuwaxl_jax.data import text
from nuwaxl_jax.data.toons import world

TOKENIZER = text.WordTokenizer(vocab_size=512, max_tokens=20)


def test_every_toons_word_has_an_id_of_its_own():
    assert set(world.VOCABULARY) <= set(text.KNOWN_WORDS)
    assert len(set(text.KNOWN_WORDS)) == len(text.KNOWN_WORDS)
    ids = [int(TOKENIZER.encode(word)[1]) for word in text.KNOWN_WORDS]
    assert sorted(set(ids)) == list(range(3, 3 + len(ids)))
    buckets = {int(TOKENIZER.encode(f"word{i}")[1]) for i in range(2000)}
    assert buckets.isdisjoint(ids) and max(buckets) < 512 and len(buckets) > 400


def test_ids_never_change():
    assert TOKENIZER.encode("A small red star walks left, at night.").tolist() == (
        [1, 3, 5, 7, 16, 18, 19, 35, 32, 33, 34, 2] + [0] * 8
    )
    # 60 + CRC-32 mod 452, with the CRC that gzip prints.
    assert TOKENIZER.encode("Wilma greets Zoë")[:6].tolist() == [1, 311, 376, 80, 2, 0]


def test_null_prompt():
    for empty in ("", "   "):
        assert TOKENIZER.encode(empty).tolist() == [1, 2] + [0] * 18


def test_long_caption_keeps_eos():
    ids = TOKENIZER.encode("big " * 50)
    assert ids.tolist() == [1] + [6] * 18 + [2]


def test_decode_returns_known_words():
    caption = "a small red star walks left, a big blue circle jumps in the forest."
    assert TOKENIZER.decode(TOKENIZER.encode(caption)) == caption
    assert TOKENIZER.decode(TOKENIZER.encode("a dragon")).startswith("a <")


def test_batch_equals_single_captions_and_is_free_to_change():
    captions = ["a red star", "", "a red star"]
    batch = TOKENIZER.encode_batch(captions)
    assert batch.dtype == np.int32 and batch.shape == (3, 20)
    np.testing.assert_array_equal(batch, np.stack([TOKENIZER.encode(caption) for caption in captions]))
    batch[:] = 7
    assert TOKENIZER.encode("a red star")[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        TOKENIZER.encode("a red star")[0] = 7


@pytest.mark.parametrize("case", ["A RED Star", "a  red\nstar", "ａ red star"])
def test_case_spaces_and_width_do_not_matter(case):
    np.testing.assert_array_equal(TOKENIZER.encode(case), TOKENIZER.encode("a red star"))


def test_half_a_character_is_the_mark_of_one():
    whole = TOKENIZER.encode("a cat \ufffd \ufffd!").tolist()
    assert TOKENIZER.encode("a cat \ud83d \udce9!").tolist() == whole and len(set(whole[:6])) == 5


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="text.vocab_size"):
        text.WordTokenizer(vocab_size=60, max_tokens=20)
    with pytest.raises(ValueError, match="text.max_tokens"):
        text.WordTokenizer(vocab_size=512, max_tokens=2)
    with pytest.raises(ValueError, match="text.tokenizer.*words"):
        text.make_tokenizer("clip", vocab_size=512, max_tokens=20)
