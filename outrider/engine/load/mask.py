"""What a layer's mask lets a token see, asked of the function by which transformers builds it, however far away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MaskFunction = Callable[[Any, Any, Any, Any], Any]
"""Given tensors of a row of the batch, a head, and the positions of a query and of keys [K]: which keys the query
sees, [K] bool. transformers calls them all int and bool."""

_WHOLE_ROWS = 1 << 14
"""Up to this position the queries that are asked about are asked about every key, beyond it about some: all of that
takes a few milliseconds, and a key that is seen or hidden on its own account would have to be found among millions."""


class ForeignMaskError(ValueError):
    """A mask that is neither causal nor causal within a sliding window."""


def sliding_window(sees: MaskFunction, num_positions: int) -> int | None:
    """How many tokens a query sees at most, itself included; None if it sees all before it.

    That holds for positions below `num_positions`: the last one gives the window, and queries at and around the powers
    of two must then see what it says. Raises ForeignMaskError if one does not.
    """
    zero = torch.zeros((), dtype=torch.int64)

    def row(query: int, keys: Tensor) -> Tensor:
        try:
            return sees(zero, zero, torch.tensor(query), keys).expand(keys.shape)
        except (RuntimeError, IndexError) as error:  # it asks for more than positions
            raise ForeignMaskError("that depends on more than how far two tokens are apart") from error

    window = _first_hidden(
        lambda age: not row(num_positions - 1, torch.tensor([num_positions - 1 - age])).item(), num_positions
    )
    for query in _queries(num_positions):
        keys = _keys(query, num_positions)
        if not torch.equal(row(query, keys), (keys <= query) & (keys > query - window)):
            raise ForeignMaskError(
                f"that at position {query} is neither causal nor a sliding window of {window} tokens"
            )
    return window if window < num_positions else None


def _first_hidden(is_hidden: Callable[[int], bool], num_ages: int) -> int:
    """The smallest age that is hidden if all that are older are, too; `num_ages` if none is."""
    seen, hidden = -1, num_ages
    while hidden - seen > 1:
        age = (seen + hidden) // 2
        seen, hidden = (seen, age) if is_hidden(age) else (age, hidden)
    return hidden


def _around_powers(limit: int) -> list[int]:
    around = {(1 << power) + shift for power in range(limit.bit_length() + 1) for shift in (-1, 0, 1)}
    return sorted(each for each in around if each < limit)


def _queries(num_positions: int) -> list[int]:
    return sorted({*_around_powers(num_positions), num_positions - 1})


def _keys(query: int, num_positions: int) -> Tensor:
    """All keys up to twice the query's position, or of a far query's some at all distances before and behind it."""
    if query < _WHOLE_ROWS:
        return torch.arange(min(2 * query + 2, num_positions))
    distances = torch.tensor(_around_powers(num_positions))
    keys = torch.cat([query - distances, query + distances, distances])
    return keys[(keys >= 0) & (keys < num_positions)]
