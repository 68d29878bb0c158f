"""A table of n-grams that was counted beforehand: what to guess where a line has not repeated itself yet."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

STATIC_ORDERS = (3, 2, 1)
"""Lengths of the contexts, longest first. Three token ids are what fits into the 64 bits of a stored context."""

TOKEN_BITS = 21
"""Bits of a token id within a packed context: three of them fit into 64 bits, and the largest vocabularies in use, of
262,144 ids, leave room."""

VOCAB_SIZE_MAX = 1 << TOKEN_BITS
"""Token ids of contexts must be below it."""

SHARE_UNIT = 255
"""Stored probabilities are bytes: multiples of 1 / SHARE_UNIT. Finer ones would decide no rank worth deciding."""


class StaticOrder(NamedTuple):
    """The contexts of one length, as plain sequences of unsigned integers."""

    contexts: Sequence[int]
    """Packed contexts, ascending: the newest token in the lowest TOKEN_BITS."""
    token_ids: Sequence[int]
    """For each context its `width` most frequent continuations, most frequent first; one row after the other."""
    shares: Sequence[int]
    """Their probabilities in units of 1 / SHARE_UNIT; 0 where a context has fewer. What a row lacks to SHARE_UNIT is
    left to the next shorter order."""


class StaticNgrams:
    """Continuations by context, of several orders. Immutable: all sessions share one."""

    __slots__ = ("_orders", "_width")

    def __init__(self, orders: Mapping[int, StaticOrder], *, width: int, vocab_size: int) -> None:
        """Takes the orders into use as they are, `width` continuations for each context.

        Raises ValueError, in words, unless every context is in order and every token id is below `vocab_size`.
        """
        if not orders or width < 1:
            raise ValueError("it holds no n-grams")
        for num_tokens, order in orders.items():
            if num_tokens not in STATIC_ORDERS:
                raise ValueError(f"it has contexts of {num_tokens} tokens; possible are {sorted(STATIC_ORDERS)}")
            _check(order, num_tokens, width, vocab_size)
        self._width = width
        self._orders = [
            ((1 << (TOKEN_BITS * num_tokens)) - 1, orders[num_tokens])
            for num_tokens in STATIC_ORDERS
            if num_tokens in orders
        ]

    def add_shares(self, context: int, rest: float, shares: dict[int, float]) -> None:
        """Distributes the probability `rest` over the continuations of `context`, longest order first."""
        width = self._width
        for mask, order in self._orders:
            key = context & mask
            index = bisect_left(order.contexts, key)
            if index == len(order.contexts) or order.contexts[index] != key:
                continue
            unit = rest / SHARE_UNIT
            for place in range(index * width, (index + 1) * width):
                if not (share := order.shares[place]):
                    break
                token_id = order.token_ids[place]
                shares[token_id] = shares.get(token_id, 0.0) + unit * share
                rest -= unit * share


def _check(order: StaticOrder, num_tokens: int, width: int, vocab_size: int) -> None:
    contexts = order.contexts
    if len(order.token_ids) != len(contexts) * width or len(order.shares) != len(contexts) * width:
        raise ValueError(f"contexts of {num_tokens} tokens do not have {width} continuations each")
    if not len(contexts):
        return
    if any(later <= earlier for earlier, later in pairwise(contexts)):
        raise ValueError(f"contexts of {num_tokens} tokens are not in ascending order")
    if contexts[0] < 0 or contexts[-1] >> (TOKEN_BITS * num_tokens):
        raise ValueError(f"contexts of {num_tokens} tokens hold less or more than that")
    for token_id in (min(order.token_ids), max(order.token_ids)):
        if not 0 <= token_id < vocab_size:
            raise ValueError(f"token id {token_id} is out of range: the vocabulary has {vocab_size}")
    shares = order.shares
    if any(sum(shares[first : first + width]) > SHARE_UNIT for first in range(0, len(shares), width)):
        raise ValueError(f"probabilities after a context of {num_tokens} tokens exceed 1")
