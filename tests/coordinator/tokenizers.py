"""Tokenizers of every kind of decoder, made up and real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "models" / "target" / "tokenizer.json"
REAL = {name: ROOT.parent / "shared" / "tokenizers" / name / "tokenizer.json" for name in ("qwen3", "deepseek_v3")}
"""Published vocabularies, where the folder beside the checkout has them."""


@cache
def real(path: Path) -> Tokenizer:
    """A tokenizer of those; the test that asks is skipped without it."""
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return Tokenizer.from_file(str(path))


BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def made_up(tokens: Sequence[str], decoder: decoders.Decoder | None, special: Sequence[str] = ("<s>",)) -> Tokenizer:
    """Token i is the i-th different one of `tokens`; the special ones and an ordinary added one come after them."""
    vocabulary = {token: token_id for token_id, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=tokens[0]))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens([AddedToken("▁added é", normalized=False)])
    return tokenizer


def _byte_fallback(*after: decoders.Decoder) -> decoders.Decoder:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *after])


_SPACED = ["▁", "▁a", "b", "▁▁", "c▁d", "▁é"]

MADE_UP: Mapping[str, Tokenizer] = {
    "byte fallback, as Llama 2": made_up(
        [*_SPACED, "", "<0x+F>", "<0xe2>", *BYTE_TOKENS], _byte_fallback(decoders.Strip(" ", 1, 0))
    ),
    "byte fallback, as Gemma": made_up([*_SPACED, *BYTE_TOKENS], _byte_fallback()),
    "byte fallback, two spaces lost": made_up([*_SPACED, *BYTE_TOKENS], _byte_fallback(decoders.Strip(" ", 2, 0))),
    "byte fallback alone": made_up(["a", *BYTE_TOKENS], decoders.ByteFallback()),
    "byte level": made_up([*"abéãĥ¤ðŁĺĢĊĠ", "Ġa", "éĢ", "ĠðŁ", "中"], decoders.ByteLevel()),
    "WordPiece": made_up(
        ["[UNK]", "a", "##b", ".", "'s", "don", "##'", "t", "do not", ",", "##"], decoders.WordPiece()
    ),
    "Unigram": made_up(["<unk>", *_SPACED], decoders.Metaspace()),
    "Unigram, no space in front": made_up(["<unk>", *_SPACED], decoders.Metaspace(prepend_scheme="never")),
    "suffixes": made_up(["low</w>", "er", "a</w>", "</w>", "x</w>y"], decoders.BPEDecoder()),
    "suffixes of nothing": made_up(["low</w>", "er"], decoders.BPEDecoder(suffix="")),
    "no decoder": made_up(["a", "b", ""], None),
    "a decoder that cannot be streamed": made_up(["a", "b", "|", "<pad>"], decoders.CTC()),
}
