"""The least that a step can take: its weights and its keys and values are read once, its products multiplied once."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A step: so many sessions, each with as many tokens below as many of context."""

    num_sessions: int
    num_tokens: int
    num_context_tokens: int

    @property
    def num_step_tokens(self) -> int:
        """Of all sessions."""
        return self.num_sessions * self.num_tokens


class Reads(NamedTuple):
    """What a step over a model reads and multiplies."""

    weight_bytes: int
    """Of all weights but a table of embeddings, of which a step reads as many rows as it has tokens."""
    num_weights: int
    """That each token is multiplied with."""
    kv_bytes_per_token: int


class Reach(NamedTuple):
    """What a device was measured to do at best."""

    gb_per_s: float
    """A copy reads and writes, both together."""
    tflops: float
    """A product of large matrices; a multiplication with its addition is two operations."""


def floor_ms(reads: Reads, row: Row, reach: Reach) -> float:
    """The least time of a step, in ms.

    Products read their weights while they multiply, so the longer of both counts; attention reads keys and values after
    them. Llama 3 8B in 16 bits at 4800 GB/s and 800 TFLOP/s, 64 sessions with 9 tokens below 2048: 15.0 GB of weights
    take 3.1 ms, 8.6 TFLOP of products 10.8 ms, 17.2 GB of keys and values 3.6 ms, all together 14.4 ms.
    """
    reading = reads.weight_bytes / reach.gb_per_s
    multiplying = 2 * reads.num_weights * row.num_step_tokens / (reach.tflops * 1e3)
    attending = row.num_sessions * row.num_context_tokens * reads.kv_bytes_per_token / reach.gb_per_s
    return (max(reading, multiplying) + attending) / 1e6
