"""Vocabulary: the target's tokens as bytes, as grammars see them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from llguidance import LLTokenizer

from outrider.core.protocol.errors import UnsupportedModelError


class Vocabulary:
    """The tokens of a tokenizer.json, and which of them end a text."""

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """Of a model with logits for `vocab_size` ids; those that the tokenizer does not know have no text. Takes a
        second for a large vocabulary, most of it outside of the interpreter's lock.

        Raises UnsupportedModelError if no grammar can be told in these tokens.
        """
        if not eos_token_ids:
            raise UnsupportedModelError("the target has no end-of-text token, with which a text of a grammar could end")
        try:
            self.tokenizer = LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=list(eos_token_ids))
        except ValueError as error:
            raise UnsupportedModelError(f"the target's tokenizer is of a kind that has no grammars: {error}") from error
        self.eos_token_ids = frozenset(eos_token_ids)
        self._vocab_size = vocab_size

    @cached_property
    def token_bytes(self) -> Sequence[bytes]:
        """By token id."""
        return [self.tokenizer.decode_bytes([token_id]) for token_id in range(self._vocab_size)]

    @property
    def num_mask_bytes(self) -> int:
        """Size of a mask: a bit for each token id from the lowest bit of the first byte on, in whole words of 4."""
        return (self._vocab_size + 31) // 32 * 4

    def mask_without(self, token_ids: Sequence[int]) -> bytes:
        """The mask that forbids these alone."""
        mask = (1 << self._vocab_size) - 1
        for token_id in token_ids:
            mask &= ~(1 << token_id)
        return mask.to_bytes(self.num_mask_bytes, "little")

    def spelled(self, content: bytes) -> list[int] | None:
        """Some tokens that make these bytes; None if the vocabulary has none that do."""
        token_ids = self.tokenizer.tokenize_bytes(content)
        return token_ids if self.tokenizer.decode_bytes(token_ids) == content else None
