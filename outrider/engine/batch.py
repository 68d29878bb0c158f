"""Continuous batching: packs the feeds of all sessions side by side onto one axis, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from outrider.engine.jobs import Feed
from outrider.engine.kv_cache.slots import Move

COMPILED_TOKENS_MAX = 16
"""Largest batch that runs compiled. Each power of two up to it is one graph; larger batches are prompts, in which the
kernels themselves take the time."""

CAPTURED_TOKENS_MAX = 256
"""Largest batch that is captured. Up to about here a GPU waits for the weights (an H200 up to 170 tokens, by its
bandwidth and its products a second), so padding costs little; beyond, the device computes for longer than a host takes
to queue."""

CAPTURED_SIZES = tuple(1 << power for power in range(CAPTURED_TOKENS_MAX.bit_length()))
"""Token buckets: the sizes of such batches."""

_ROUNDED_TO = 16
"""Larger steps are rounded up to a multiple of this many tokens: the rows of a processor's matrix registers."""

_COARSE_MIN = 256
_COARSELY_ROUNDED_TO = 64
"""From _COARSE_MIN tokens on, to a multiple of this many."""


def rounded(num_tokens: int) -> int:
    """The size to which a step over `num_tokens` tokens, or its wanted rows, is padded: one of some forty up to 512.

    Kernel libraries keep what they made for each size that they have met, up to a megabyte a size, for a thousand sizes
    and more. With every size of its own a worker grew by 97 MB a minute. Our own kernels keep nothing: see `as_it_is`.
    """
    if num_tokens <= _ROUNDED_TO:
        return num_tokens
    multiple = _ROUNDED_TO if num_tokens <= _COARSE_MIN else _COARSELY_ROUNDED_TO
    return -(-num_tokens // multiple) * multiple


def as_it_is(num_tokens: int) -> int:
    """The same for a graph without a library's kernels: 17 tokens then take 2.8 ms in place of the 4.6 of 32, of the
    demonstration target."""
    return num_tokens


def bucket(count: int) -> int:
    """The static size that holds `count` tokens: the next power of two, so that few shapes ever occur."""
    return 1 << (count - 1).bit_length() if count else 0


class SessionSpan(NamedTuple):
    """Where one session stands in a packed batch and in the caches."""

    first_token: int
    end_token: int
    first_block: int
    """Index in the batch's `blocks` of the one that holds its slot's cell 0; the next ones follow there."""
    num_cells: int
    """How many of the slot's cells are in use, those that this pass writes included."""


@dataclass(slots=True)
class PackedBatch:
    """One forward pass over N tokens of S sessions, as plain numbers.

    A token sees the first `limits[i]` cells of its slot, which hold the line, and the cells of its path, which hold the
    nodes from the one below the line to the token's own. So it is at position `limits[i] + len(path) - 1`. All that
    grows with the context is the list of the slots' blocks.
    """

    token_ids: list[int] = field(default_factory=list)
    """[N]"""
    positions: list[int] = field(default_factory=list)
    """[N]"""
    write_cells: list[int] = field(default_factory=list)
    """[N], in the caches: where each token's key and value go."""
    limits: list[int] = field(default_factory=list)
    """[N]"""
    path_offsets: list[int] = field(default_factory=lambda: [0])
    """[N + 1] into `path_cells`"""
    path_cells: list[int] = field(default_factory=list)
    """Within the slot."""
    sessions: list[SessionSpan] = field(default_factory=list)
    """[S]"""
    blocks: list[int] = field(default_factory=list)
    """The blocks of all sessions, one session's after the other's: its slot's cell c lies in the caches at
    `blocks[first_block + c // block_cells] * block_cells + c % block_cells`."""
    block_cells: int = 1
    """Cells of one block."""
    rows: list[int] = field(default_factory=list)
    """[R], the tokens whose logits are wanted."""
    row_slots: list[int] = field(default_factory=list)
    """[R], the number of each one's slot."""
    row_choices: list[int] = field(default_factory=list)
    """[R], how many tokens the pass should choose from each; see `Job.num_choices`."""
    num_tokens_min: int = 0
    """The pass over the batch pads it to at least that many tokens."""
    moves: Sequence[Move] = ()
    """Cells that the step moves before it writes any; see `AttentionBackend.moves_max`."""

    def pad(self, num_tokens: int, scratch_cell: int) -> None:
        """Fills up to `num_tokens` with tokens that belong to no session: they see nothing and write to a cell that
        nobody reads."""
        num_missing = num_tokens - len(self.token_ids)
        self.token_ids += [0] * num_missing
        self.positions += [0] * num_missing
        self.write_cells += [scratch_cell] * num_missing
        self.limits += [0] * num_missing
        self.path_offsets += [self.path_offsets[-1]] * num_missing


def pack(feeds: Sequence[Feed], num_tokens_min: int = 0) -> PackedBatch:
    """Lays the feeds side by side; those without tokens are left out."""
    batch = PackedBatch(num_tokens_min=num_tokens_min)
    for feed in feeds:
        if not feed.token_ids:
            continue
        slot, first_token = feed.job.slot, len(batch.token_ids)
        batch.rows += [first_token + row for row in feed.rows]
        batch.row_slots += [slot.index] * len(feed.rows)
        batch.row_choices += [feed.job.num_choices] * len(feed.rows)
        batch.token_ids += feed.token_ids
        batch.positions += feed.positions
        batch.write_cells += slot.places(feed.cells)
        num_cells = max(slot.end_cell, max(feed.cells) + 1)
        batch.sessions.append(SessionSpan(first_token, len(batch.token_ids), len(batch.blocks), num_cells))
        batch.blocks += slot.blocks
        batch.block_cells = slot.block_cells
        batch.limits += [cell + 1 for cell in feed.cells[: feed.num_prefix]]
        batch.path_offsets += [len(batch.path_cells)] * feed.num_prefix
        batch.limits += [len(feed.job.line)] * len(feed.paths)
        for path in feed.paths:
            batch.path_cells += path
            batch.path_offsets.append(len(batch.path_cells))
    return batch
