"""No token stands for more text than is said of the tokenizer, or nothing is said of it."""

from __future__ import annotations

import math
import sys
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from coordinator.longest_token import SHRINKS, longest_token_bytes
from tests.coordinator.tokenizers import BUNDLED, BYTE_TOKENS, REAL, real

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
LLAMA = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
TEXTS = st.text(st.sampled_from("ab \n\té1中\u0301\u212b\u212a\uff21\u1100\u1161\u11a8😀<|s>"), max_size=24)


def byte_level(*merges: tuple[str, str]) -> Tokenizer:
    tokens = [*ALPHABET, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    return tokenizer


def byte_fallback(tokens: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(["<unk>", *tokens, *map("".join, merges)])}
    return Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def normalized(tokenizer: Tokenizer, normalizer: normalizers.Normalizer) -> Tokenizer:
    tokenizer.normalizer = normalizer
    return tokenizer


def with_added(tokenizer: Tokenizer, token: AddedToken) -> Tokenizer:
    tokenizer.add_special_tokens([token])
    return tokenizer


def pre_tokenized(tokenizer: Tokenizer, *parts: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(False)])
    return tokenizer


BOUNDED: Mapping[str, tuple[Tokenizer, int]] = {
    "bytes": (byte_level(), 1),
    "a merge of bytes": (byte_level(("Ġ", "Ġ"), ("ĠĠ", "a")), 3),
    "an added token": (with_added(byte_level(), AddedToken("<|é|>")), 6),
    "NFC": (normalized(byte_level(("a", "b")), normalizers.NFC()), 8),
    "NFKC": (normalized(byte_level(("a", "b")), normalizers.Sequence([normalizers.NFKC()])), 8),
    "digits apart": (pre_tokenized(byte_level(("a", "b")), pre_tokenizers.Digits(True)), 2),
    "as Llama": (normalized(byte_fallback(["▁", "a", *BYTE_TOKENS], [("▁", "a")]), LLAMA), 6),
    "a replacement that is shorter": (normalized(byte_level(), normalizers.Replace("ab\n", "c")), 3),
}

UNBOUNDED: Mapping[str, Tokenizer] = {
    "words": Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]")),
    "WordPiece": Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")),
    "Unigram": Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)),
    "a byte without a token": byte_fallback(["a", *BYTE_TOKENS[1:]], []),
    "no byte fallback": Tokenizer(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>", fuse_unk=True)),
    "text that is dropped": Tokenizer(models.BPE({"a": 0}, [])),
    "a hole in the vocabulary": Tokenizer(
        models.BPE({token: 2 * index for index, token in enumerate(["a", *BYTE_TOKENS])}, [], byte_fallback=True)
    ),
    "a token that swallows spaces": with_added(byte_level(), AddedToken("<mask>", lstrip=True)),
    "accents are dropped": normalized(byte_level(), normalizers.StripAccents()),
    "a character is dropped": normalized(byte_level(), normalizers.Replace("a", "")),
    "spaces are dropped": pre_tokenized(byte_level(), pre_tokenizers.WhitespaceSplit()),
    "separators are dropped": pre_tokenized(byte_level(), pre_tokenizers.Split("-", "removed")),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_the_longest_token_is_that_of_the_vocabulary_times_what_the_normalizer_shrinks(name: str) -> None:
    tokenizer, expected = BOUNDED[name]
    assert longest_token_bytes(tokenizer) == expected


@pytest.mark.parametrize("name", UNBOUNDED)
def test_nothing_is_said_where_a_token_may_stand_for_any_length(name: str) -> None:
    assert longest_token_bytes(UNBOUNDED[name]) is None


@pytest.mark.parametrize("name", BOUNDED)
@given(text=TEXTS)
def test_no_text_makes_fewer_tokens(name: str, text: str) -> None:
    tokenizer, longest = BOUNDED[name]
    assert len(text.encode()) <= longest * len(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("path", [BUNDLED, *REAL.values()], ids=["bundled", *REAL])
def test_real_vocabularies_have_one(path: Path) -> None:
    tokenizer = real(path)
    longest = longest_token_bytes(tokenizer)
    assert longest in (41, 128, 4 * 128)

    @given(text=TEXTS)
    def holds(text: str) -> None:
        assert len(text.encode()) <= longest * len(tokenizer.encode(text, add_special_tokens=False).ids)

    holds()


@pytest.mark.parametrize("name", ["NFC", "NFD", "NFKC", "NFKD"])
def test_what_unicode_normalization_shrinks_is_known(name: Literal["NFC", "NFD", "NFKC", "NFKD"]) -> None:
    """Over all texts: a text is a row of decomposed characters, of which one weighs as much as the longest that becomes
    it alone. A character that becomes several is no longer than these weigh. So a composed one is what its parts weigh,
    at most."""
    form = "NFKD" if "K" in name else "NFD"
    decomposed = {each: unicodedata.normalize(form, each) for each in _not_normalized()}
    weights: dict[str, int] = {}
    for character, parts in decomposed.items():
        if len(parts) == 1:
            weights[parts] = max(weights.get(parts, 0), len(character.encode()))

    def weight(parts: str) -> int:
        return sum(weights.get(part, len(part.encode())) for part in parts)

    assert all(len(character.encode()) <= weight(parts) for character, parts in decomposed.items())
    kept = [each for each in decomposed if unicodedata.normalize(name, each) == each]
    shrinks = [weight(decomposed.get(each, each)) / len(each.encode()) for each in [*kept, *weights]]
    assert math.ceil(max(shrinks)) == SHRINKS[name]


def test_what_lowercasing_shrinks_is_known() -> None:
    cased = (each for each in map(chr, range(sys.maxunicode)) if each.lower() != each)
    assert max(len(each.encode()) / len(each.lower().encode()) for each in cased) == SHRINKS["Lowercase"]


@cache
def _not_normalized() -> list[str]:
    """All characters that a normalization may change."""
    return [each for each in map(chr, range(sys.maxunicode)) if not unicodedata.is_normalized("NFKD", each)]
