"""Logits processors: what changes logits before the choice. The door for another one, such as a grammar's mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from outrider.core.protocol.sampling import SamplingParams


class Row(NamedTuple):
    """The place of one token to choose: after the committed line of the session in `slot`, and `path` after it."""

    slot: int
    position: int
    """Absolute position of the token to choose."""
    path: Sequence[int] = ()
    """Token ids between the committed line and this token. Processors take them for output; without any that asks for
    them they may be left out."""


class LogitsProcessor(Protocol):
    """One change of logits, for the sessions that ask for it. It keeps a state for each of their slots.

    The sampler has its processors in a list and runs them in that order, on float32 logits, before temperature and
    filters; the native operator chooses from what they leave, as torch does. -inf forbids a token. Of a row, a
    processor must leave one token at least that is not forbidden, and no NaN.

    A processor's result must depend on the session's parameters, its committed line and the row's path alone: then a
    verifier, a drafter and a worker that takes over choose alike.
    """

    def open(
        self, slot: int, params: SamplingParams, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]
    ) -> bool:
        """Takes in the session in `slot`, whose line is the prompt and the output so far.

        Returns whether the processor changes its logits. If not, it keeps nothing and is not asked again.
        """
        ...

    def commit(self, slot: int, token_ids: Sequence[int]) -> None:
        """Adds committed output, of one token or more, to the line of a session that it takes part in."""
        ...

    def close(self, slot: int) -> None:
        """Forgets the session in `slot`."""
        ...

    def process(self, logits: Tensor, indices: Sequence[int], rows: Sequence[Row]) -> None:
        """Changes, in place, those rows of float32 `logits` [R, V] that stand at `indices` and belong to `rows`."""
        ...
