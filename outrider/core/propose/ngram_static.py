"""A table of n-grams that was counted beforehand: what to guess where a line has not repeated itself yet."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
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


NEGLIGIBLE = 0.02
"""Shorter orders are not asked for less than this share of the probability."""

_ROWS_KEPT_MAX = 4096
"""Contexts of one order that are remembered, those asked for last: texts have favourites, and finding one in the table
takes ten times as long. They take about a megabyte."""


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

    __slots__ = ("_orders", "orders", "width")

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
        self.orders = {num_tokens: orders[num_tokens] for num_tokens in STATIC_ORDERS if num_tokens in orders}
        """Longest contexts first."""
        self.width = width
        """How many continuations a context has."""
        self._orders = [
            ((1 << (TOKEN_BITS * num_tokens)) - 1, lru_cache(_ROWS_KEPT_MAX)(partial(_row, order, width)))
            for num_tokens, order in self.orders.items()
        ]

    def add_shares(self, context: int, rest: float, shares: dict[int, float]) -> None:
        """Distributes the probability `rest` over the continuations of `context`, longest order first."""
        for mask, row in self._orders:
            continuations, rest_share = row(context & mask)
            for token_id, share in continuations:
                shares[token_id] = shares.get(token_id, 0.0) + rest * share
            rest *= rest_share
            if rest < NEGLIGIBLE:
                return


def _row(order: StaticOrder, width: int, context: int) -> tuple[Sequence[tuple[int, float]], float]:
    """The continuations of a context with their probabilities, and what these lack to 1."""
    index = bisect_left(order.contexts, context)
    if index == len(order.contexts) or order.contexts[index] != context:
        return (), 1.0
    places = slice(index * width, (index + 1) * width)
    shares = order.shares[places]
    continuations = [
        (token_id, share / SHARE_UNIT) for token_id, share in zip(order.token_ids[places], shares, strict=True) if share
    ]
    return continuations, 1.0 - sum(shares) / SHARE_UNIT


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
