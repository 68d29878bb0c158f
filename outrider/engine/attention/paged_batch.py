"""A packed batch as FlashAttention's paged kernel takes it: calls over sequences of queries, with tables of blocks.

The kernel knows causal sequences and sequences that see all their keys, but no trees. So a batch is taken apart:

- a *run* sees one cell more with every token: a stretch of the line, or a chain of nodes in a row behind it;
- a *fan* (shared-prefix queries) sees the same cells with all its tokens: one token alone, or what sees just the line,
  that is its last token and the nodes below it;
- a *path* is what a node of a fan sees besides: the cells of the nodes above it, and its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.engine.batch import PackedBatch, SessionSpan
from outrider.engine.transfer import send

MERGED_QUERIES_MIN = 2
"""Smallest `max_queries` of a call whose LSE is wanted. With one query the kernel makes query heads that share a key
head into queries, and where it reads blocks, it writes the LSE in another order than it then reads it in
(FlashAttention 2, `compute_attn_1rowblock_splitkv` and `mha_varlen_fwd`)."""


class Stretch(NamedTuple):
    """Successive tokens of one session which see its first cells and no others."""

    first_token: int
    end_token: int
    num_cells: int
    """How many cells the last one sees; at least as many as there are tokens, if each sees one more."""
    first_block: int
    """Index in the batch's `blocks` of the one that holds the session's cell 0."""

    @property
    def num_tokens(self) -> int:
        """How many tokens it has."""
        return self.end_token - self.first_token


@dataclass(slots=True)
class Parts:
    """What each token of a batch sees of its session's cells, each cell once."""

    runs: list[Stretch] = field(default_factory=list[Stretch])
    """Each token sees one cell more than the one before it."""
    fans: list[Stretch] = field(default_factory=list[Stretch])
    """All tokens of one see the same cells."""
    paths: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    """By tokens of fans, in their order: the cells, in the caches, that they see besides."""


def parts_of(batch: PackedBatch) -> Parts:
    """Takes `batch` apart."""
    parts = Parts()
    for session in batch.sessions:
        first, end = session.first_token, session.end_token
        num_cells = _num_cells_of_run(batch, session)
        if not num_cells:
            num_cells = batch.limits[end - 1]
            first_of_fan = batch.limits.index(num_cells, first, end)
            parts.fans.append(Stretch(first_of_fan, end, num_cells, session.first_block))
            for token in range(first_of_fan, end):
                if path := _path(batch, token):
                    parts.paths[token] = [_place(batch, session, cell) for cell in path]
            end, num_cells = first_of_fan, num_cells - 1
        if first < end:
            stretches = parts.fans if end - first == 1 else parts.runs
            stretches.append(Stretch(first, end, num_cells, session.first_block))
    return parts


def _num_cells_of_run(batch: PackedBatch, session: SessionSpan) -> int:
    """How many cells the session's last token sees if its tokens are one run; else 0."""
    first, end = session.first_token, session.end_token
    first_node = bisect_right(batch.path_offsets, batch.path_offsets[first], first, end + 1) - 1
    num_cells = batch.limits[first_node - 1] if first < first_node else 0  # tokens of the line are a run
    for token in range(first_node, end):
        limit, path = batch.limits[token], _path(batch, token)
        is_next = num_cells in (0, limit + len(path) - 1)
        num_cells = limit + len(path)
        if not is_next or path != list(range(limit, num_cells)):
            return 0
    return num_cells


def _path(batch: PackedBatch, token: int) -> list[int]:
    return batch.path_cells[batch.path_offsets[token] : batch.path_offsets[token + 1]]


def _place(batch: PackedBatch, session: SessionSpan, cell: int) -> int:
    block = batch.blocks[session.first_block + cell // batch.block_cells]
    return block * batch.block_cells + cell % batch.block_cells


class Call(NamedTuple):
    """One call of the kernel: G sequences with Q queries in all. Tensors are on the device, int32 but for `tokens`."""

    tokens: Tensor
    """[Q] int64: whose the queries are, sequence after sequence."""
    query_offsets: Tensor
    """[G + 1] into `tokens`: where each sequence's queries begin."""
    key_offsets: Tensor
    """[G + 1]: the numbers of the sequences' keys, added up."""
    max_queries: int
    max_keys: int
    num_keys: Tensor | None = None
    """[G]; None if the keys are handed over side by side, as `key_offsets` says."""
    table: Tensor | None = None
    """[G, most blocks of one]: the blocks that hold each sequence's keys."""


class PagedBatch(NamedTuple):
    """A batch taken apart, on the device. M tokens have paths, of P cells in all."""

    runs: Call | None
    fans: Call | None
    paths: Call | None
    """A sequence for each of the M tokens."""
    path_cells: Tensor
    """[P] int64, in the caches."""
    path_places: Tensor
    """[M] int64: which queries of `fans` the M tokens' are."""


def load(batch: PackedBatch, device: torch.device) -> PagedBatch:
    """Takes `batch` apart and sends it to `device`."""
    parts = parts_of(batch)
    fan_tokens = _tokens(parts.fans)
    places = {token: place for place, token in enumerate(fan_tokens)} if parts.paths else {}
    nums_path_cells = [len(path) for path in parts.paths.values()]
    run_tokens, fan_tokens, path_tokens, path_cells, path_places = send(
        (
            _tokens(parts.runs),
            fan_tokens,
            [*parts.paths],
            [cell for path in parts.paths.values() for cell in path],
            [places[token] for token in parts.paths],
        ),
        device,
    )
    numbers = send(
        (
            *_tables(batch, parts.runs),
            *_tables(batch, parts.fans),
            [*range(len(parts.paths) + 1)],
            [*accumulate(nums_path_cells, initial=0)],
        ),
        device,
        torch.int32,
    )
    paths = Call(path_tokens, numbers[8], numbers[9], MERGED_QUERIES_MIN, max(nums_path_cells, default=0))
    return PagedBatch(
        runs=_call(parts.runs, run_tokens, numbers[:4]),
        fans=_call(parts.fans, fan_tokens, numbers[4:8], MERGED_QUERIES_MIN if parts.paths else 1),
        paths=paths if parts.paths else None,
        path_cells=path_cells,
        path_places=path_places,
    )


def _tokens(stretches: Sequence[Stretch]) -> list[int]:
    return [token for stretch in stretches for token in range(stretch.first_token, stretch.end_token)]


def _tables(batch: PackedBatch, stretches: Sequence[Stretch]) -> tuple[list[int], ...]:
    """For a call over `stretches`: its query_offsets, key_offsets, num_keys, and its table row after row."""
    nums_keys = [stretch.num_cells for stretch in stretches]
    nums_blocks = [-(-num_keys // batch.block_cells) for num_keys in nums_keys]
    width = max(nums_blocks, default=0)
    table: list[int] = []
    for stretch, num_blocks in zip(stretches, nums_blocks, strict=True):
        table += batch.blocks[stretch.first_block : stretch.first_block + num_blocks]
        table += [0] * (width - num_blocks)
    nums_queries = (stretch.num_tokens for stretch in stretches)
    return [*accumulate(nums_queries, initial=0)], [*accumulate(nums_keys, initial=0)], nums_keys, table


def _call(stretches: Sequence[Stretch], tokens: Tensor, tables: Sequence[Tensor], min_queries: int = 1) -> Call | None:
    if not stretches:
        return None
    query_offsets, key_offsets, num_keys, table = tables
    return Call(
        tokens=tokens,
        query_offsets=query_offsets,
        key_offsets=key_offsets,
        max_queries=max(min_queries, max(stretch.num_tokens for stretch in stretches)),
        max_keys=max(stretch.num_cells for stretch in stretches),
        num_keys=num_keys,
        table=table.view(len(stretches), -1),
    )
