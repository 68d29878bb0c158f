"""The longest token of a tokenizer: how many bytes of text it stands for at most, so that a text is known to make too
many tokens before it is tokenized."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tokenizers import Tokenizer, models, pre_tokenizers

SHRINKS: Final = {"NFC": 4, "NFD": 3, "NFKC": 4, "NFKD": 4, "Lowercase": 3, "Prepend": 1}
"""Bytes of text from which a normalizer makes one byte at most: the three of U+212A KELVIN SIGN become a K, the four of
U+1D400 MATHEMATICAL BOLD CAPITAL A an A, the seven of U+1FBE U+0308 U+0301 the two of U+0390. A test counts them over
all of Unicode."""

_KEEPING: Final = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts"}
"""Pre-tokenizers that drop no text, unless their behavior is Removed."""


def longest_token_bytes(tokenizer: Tokenizer) -> int | None:
    """No token stands for more bytes of UTF-8 text. None if there is no such number.

    There is one for BPE whose vocabulary spells every byte and whose other parts drop no text. There is none where one
    token, such as [UNK], may stand for any number of characters, or where an added token swallows the spaces around it.
    """
    model, normalizer = tokenizer.model, tokenizer.normalizer
    added = tokenizer.get_added_tokens_decoder().values()
    shrink = _shrink(_parts(normalizer, "normalizers"))
    splitting = _parts(tokenizer.pre_tokenizer, "pretokenizers")
    if (
        not isinstance(model, models.BPE)
        or model.continuing_subword_prefix
        or model.end_of_word_suffix
        or shrink is None
        or any(part["type"] not in _KEEPING or part.get("behavior") == "Removed" for part in splitting)
        or any(token.lstrip or token.rstrip for token in added)
    ):
        return None
    # One by one, because get_vocab would hold the interpreter for a second.
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    tokens = {token for token_id in range(size) if (token := model.id_to_token(token_id)) is not None}
    if len(tokens) < size:
        return None
    if any(part["type"] == "ByteLevel" for part in splitting):
        if not tokens >= set(pre_tokenizers.ByteLevel.alphabet()):
            return None
        longest = max(map(len, tokens))  # each character is a byte
    elif model.byte_fallback and tokens >= {f"<0x{byte:02X}>" for byte in range(256)}:
        longest = max(len(token.encode()) for token in tokens)
    else:
        return None
    contents = [token.content for token in added]
    if normalizer is not None:
        contents += [normalizer.normalize_str(content) for content in contents]
    return shrink * max([longest, *(len(content.encode()) for content in contents)])


def _shrink(normalizers: Sequence[Mapping[str, Any]]) -> int | None:
    """Bytes of text from which all of them together make one byte at most; None if any number may vanish."""
    shrink = 1
    for part in normalizers:
        if part["type"] == "Replace" and "String" in part["pattern"] and part["content"]:
            shrink *= -(-len(part["pattern"]["String"].encode()) // len(part["content"].encode())) or 1
        elif part["type"] in SHRINKS:
            shrink *= SHRINKS[part["type"]]
        else:
            return None
    return shrink


def _parts(component: Any, inner: str) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as the JSON of those that it applies one after another."""

    def flat(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [each for one in part[inner] for each in flat(one)] if part["type"] == "Sequence" else [part]

    return [] if component is None else flat(json.loads(component.__getstate__()))
