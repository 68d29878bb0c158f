"""Stop conditions: which token is a session's last one, by the rules that its verifier applies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from outrider.core.protocol.messages import FinishReason, VerifyOpen


class Ending(NamedTuple):
    """The rules of one session."""

    eos_token_ids: frozenset[int]
    stop_token_ids: frozenset[int]
    max_length: int

    @classmethod
    def of(cls, opening: VerifyOpen, eos_token_ids: Sequence[int]) -> Ending:
        """What `opening` asks for at a target with these end-of-text tokens; after a grammar's, nothing can follow."""
        goes_on = opening.ignore_eos and opening.sampling.grammar is None
        return cls(frozenset(() if goes_on else eos_token_ids), opening.stop_token_ids, opening.max_length)

    def reason(self, token_id: int, length: int) -> FinishReason | None:
        """Why a line of `length` that generation has brought to `token_id` ends there; None if it goes on."""
        if token_id in self.eos_token_ids:
            return FinishReason.EOS
        if token_id in self.stop_token_ids:
            return FinishReason.STOP_TOKEN
        if length >= self.max_length:
            return FinishReason.LENGTH
        return None
