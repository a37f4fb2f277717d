"""CLIP's byte-pair encoding (arXiv:2103.00020), the tokenizer of the text encoder that NUWA-XL starts from.

The `tokenizers` library does the work; this file puts CLIP's rules into it: Unicode NFC, lower case, runs of white
space as one blank, the word pattern, bytes as characters, '</w>' at a word's end. The vocabulary is read from what
people have: a folder with `vocab.json` and `merges.txt`, or with `tokenizer.json` (transformers); the original
`bpe_simple_vocab_16e6.txt.gz` (OpenAI); or one of our weight files, which carry the vocabulary in their header.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import pathlib
from typing import Any

import numpy as np
import safetensors
import tokenizers

from nuwaxl_jax.data import characters

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
HEADER_KEY = "vocabulary"  # of a weight file's metadata
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's pattern
)
_ORIGINAL_MERGES = 49152 - 256 - 2  # of OpenAI's file, the first that its authors use


class VocabularyError(ValueError):
    """One line: which file, what is wrong, the mend."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a CLIP tokenizer knows.

    Attributes:
      ids: token -> id.
      merges: pairs, the first merged first.
      pad: the token that fills short captions; Stable Diffusion v1 pads with the end token.
    """

    ids: dict[str, int]
    merges: tuple[tuple[str, str], ...]
    pad: str = EOS

    def to_json(self) -> str:
        """For a weight file's header."""
        return json.dumps(dict(ids=self.ids, merges=[" ".join(pair) for pair in self.merges], pad=self.pad))

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Reads `to_json`'s text."""
        values = json.loads(text)
        return cls(values["ids"], _pairs(values["merges"]), values["pad"])


def _pairs(merges: Any) -> tuple[tuple[str, str], ...]:
    """Merges as 'a b' or ['a', 'b'], to pairs."""
    return tuple(tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges)


def read(path: str) -> Vocabulary:
    """The vocabulary of a folder or a file, see the module.

    Raises:
      VocabularyError: none is there, or it is damaged.
    """
    if not path:
        problem = "is empty, and the tokenizer clip_bpe has no vocabulary of its own"
        mend = "give a folder with vocab.json and merges.txt, or weights that carry one"
        raise VocabularyError(f"text.vocabulary: {problem}; {mend}")
    place = pathlib.Path(path)
    try:
        found = _read_folder(place) if place.is_dir() else _read_file(place)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise VocabularyError(f"text.vocabulary: {path} cannot be read ({error!r}); fetch it again") from error
    absent = [token for token in (BOS, EOS, found.pad) if token not in found.ids]
    if absent:
        raise VocabularyError(f"text.vocabulary: {path} lacks {absent[0]}, so it is not CLIP's; give CLIP's")
    return found


def _read_folder(place: pathlib.Path) -> Vocabulary:
    if (place / "vocab.json").is_file() and (place / "merges.txt").is_file():
        ids = json.loads((place / "vocab.json").read_text(encoding="utf-8"))
        lines = (place / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = _pairs(line for line in lines if line.strip() and not line.startswith("#version"))
    elif (place / "tokenizer.json").is_file():
        model = json.loads((place / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        ids, merges = model["vocab"], _pairs(model["merges"])
    else:
        problem = "holds neither vocab.json with merges.txt nor tokenizer.json"
        raise VocabularyError(f"text.vocabulary: {place} {problem}; give CLIP's tokenizer folder")
    return Vocabulary(ids, merges, _pad_token(place))


def _pad_token(place: pathlib.Path) -> str:
    """As the folder's settings say; the end token where they do not."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (place / name).is_file():
            pad = json.loads((place / name).read_text(encoding="utf-8")).get("pad_token")
            if pad:
                return pad["content"] if isinstance(pad, dict) else pad
    return EOS


def _read_file(place: pathlib.Path) -> Vocabulary:
    if not place.is_file():
        raise VocabularyError(f"text.vocabulary: {place} does not exist; give CLIP's tokenizer folder")
    if place.suffix == ".safetensors":
        try:
            with safetensors.safe_open(place, framework="numpy") as file:
                text = (file.metadata() or {}).get(HEADER_KEY)
        except safetensors.SafetensorError as error:
            raise VocabularyError(f"text.vocabulary: {place} is damaged ({error}); fetch it again") from error
        if text is None:
            raise VocabularyError(f"text.vocabulary: {place} carries no vocabulary; give CLIP's tokenizer folder")
        return Vocabulary.from_json(text)
    if place.name.endswith(".txt.gz"):
        return _original(gzip.decompress(place.read_bytes()).decode("utf-8"))
    raise VocabularyError(f"text.vocabulary: {place} is no vocabulary; give CLIP's tokenizer folder")


def _original(text: str) -> Vocabulary:
    """OpenAI's file: a line of version, then merges. Ids: bytes, bytes at a word's end, merges, the two marks."""
    merges = _pairs(line for line in text.split("\n")[1 : _ORIGINAL_MERGES + 1] if line)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = [b for b in range(256) if b not in printable]
    single = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(spare))]  # a character a byte
    tokens = [*single, *(s + "</w>" for s in single), *("".join(pair) for pair in merges), BOS, EOS]
    return Vocabulary({token: i for i, token in enumerate(tokens)}, merges)


@functools.lru_cache(maxsize=4)
def _engine(path: str) -> tuple[tokenizers.Tokenizer, int, int, int, int]:
    """(the library's tokenizer, ids of begin, end and pad, the highest id + 1) of a vocabulary."""
    known = read(path)
    model = tokenizers.models.BPE(
        vocab=known.ids, merges=list(known.merges), end_of_word_suffix="</w>", unk_token=EOS, fuse_unk=False
    )
    engine = tokenizers.Tokenizer(model)
    engine.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.NFC(),
            tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            tokenizers.normalizers.Lowercase(),
        ]
    )
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    engine.decoder = tokenizers.decoders.ByteLevel()
    marks = {BOS, EOS, known.pad}
    engine.add_special_tokens([tokenizers.AddedToken(m, normalized=False, special=True) for m in sorted(marks)])
    return engine, known.ids[BOS], known.ids[EOS], known.ids[known.pad], max(known.ids.values()) + 1


@functools.lru_cache(maxsize=65536)
def _encode(path: str, caption: str, max_tokens: int) -> np.ndarray:
    engine, bos, eos, pad, _ = _engine(path)
    words = engine.encode(characters.whole(caption), add_special_tokens=False).ids[: max_tokens - 2]
    ids = np.full(max_tokens, pad, np.int32)
    ids[: len(words) + 2] = [bos, *words, eos]
    ids.setflags(write=False)
    return ids


@dataclasses.dataclass(frozen=True)
class CLIPTokenizer:
    """Token ids of captions. The vocabulary is read when the first caption is.

    Attributes:
      vocab_size: rows of the text encoder's table; the vocabulary must fit.
      max_tokens: N, begin and end included; longer captions lose their end but keep the end token. CLIP: 77.
      vocabulary: path, see `read`.
    """

    vocab_size: int
    max_tokens: int
    vocabulary: str = ""

    def _check(self) -> None:
        used = _engine(self.vocabulary)[-1]
        if used > self.vocab_size:
            problem = f"{self.vocab_size} is below the vocabulary's {used} tokens"
            raise VocabularyError(f"text.vocab_size: {problem}; set text.vocab_size={used}")

    def encode(self, caption: str) -> np.ndarray:
        """int32 [N], read-only: begin, tokens, end, pad; '' is the null prompt.

        Raises:
          VocabularyError: as `read`, or more tokens than vocab_size.
        """
        self._check()
        return _encode(self.vocabulary, caption, self.max_tokens)

    def encode_batch(self, captions: list[str]) -> np.ndarray:
        """int32 [n, N] for n captions; repeated captions cost a look-up."""
        ids = np.zeros((len(captions), self.max_tokens), np.int32)
        for row, caption in enumerate(captions):
            ids[row] = self.encode(caption)
        return ids

    def decode(self, ids: np.ndarray) -> str:
        """The text of int [N] ids, lower case, up to the end token."""
        engine, bos, eos, _, _ = _engine(self.vocabulary)
        kept = [int(i) for i in np.asarray(ids)]
        kept = kept[: kept.index(eos)] if eos in kept else kept
        text = engine.decode([i for i in kept if i != bos], skip_special_tokens=False)
        return text.replace("</w>", " ").strip()
