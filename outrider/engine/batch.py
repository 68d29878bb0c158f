"""Packs the feeds of all sessions onto one axis, padded as a whole to a static size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outrider.engine.attention import NO_MASK, mask_stride
from outrider.engine.compiling import COMPILED_TOKENS_MAX
from outrider.engine.jobs import Feed


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One forward pass over N tokens (padding included) with R wanted rows of S sessions, on the CPU."""

    token_ids: Tensor
    """[1, N] int64"""
    positions: Tensor
    """[1, N] int64"""
    write_cells: Tensor
    """[N] int64"""
    rows: Tensor
    """[R] int64 into the packed axis, padded with zeros: to N in a small batch, else to a bucket."""
    num_rows: int
    """How many of `rows` are wanted."""
    spans: Tensor
    """[S, 5] int64, see RaggedBatch.spans."""
    masks: dict[int | None, Tensor]
    """For each sliding window of the model (None: full attention) all sessions' masks, raveled with their rows padded
    to `mask_stride`; True is visible."""


def bucket(count: int) -> int:
    """The static size that holds `count` tokens: the next power of two, so that few shapes ever occur."""
    return 1 << (count - 1).bit_length() if count else 0


def pack(feeds: Sequence[Feed], windows: Sequence[int | None], scratch_cell: int) -> PackedBatch:
    """Lays the feeds side by side; `windows` are the sliding windows that occur in the model."""
    token_ids: list[int] = []
    positions: list[int] = []
    write_cells: list[int] = []
    rows: list[int] = []
    spans: list[list[int]] = []
    masks: dict[int | None, list[Tensor]] = {window: [] for window in windows}
    mask_size = 0
    for feed in feeds:
        first_query = len(token_ids)
        rows.extend(first_query + row for row in feed.rows)
        token_ids.extend(feed.token_ids)
        positions.extend(feed.positions)
        slot = feed.job.slot
        write_cells.extend(slot.first_cell + cell for cell in feed.cells)
        num_cells = max(slot.end_cell, max(feed.cells, default=-1) + 1)
        mask_offset = NO_MASK
        if not _sees_everything(feed, num_cells, windows):
            mask_offset = mask_size
            stride = mask_stride(num_cells)
            mask_size += len(feed.cells) * stride
            visible = _visible(feed, stride)
            for window in windows:
                masks[window].append(_within_window(feed, visible, window).flatten())
        spans.append([first_query, len(token_ids), slot.first_cell, slot.first_cell + num_cells, mask_offset])
    size = bucket(len(token_ids))
    num_padding = size - len(token_ids)
    # A small batch computes logits for every token: then its size alone tells its shape.
    num_row_places = size if size <= COMPILED_TOKENS_MAX else bucket(len(rows))
    return PackedBatch(
        token_ids=torch.tensor([token_ids + [0] * num_padding]),
        positions=torch.tensor([positions + [0] * num_padding]),
        write_cells=torch.tensor(write_cells + [scratch_cell] * num_padding),
        rows=torch.tensor(rows + [0] * (num_row_places - len(rows)), dtype=torch.int64),
        num_rows=len(rows),
        spans=torch.tensor(spans).view(-1, 5),
        masks={
            window: torch.cat(parts) if parts else torch.empty(0, dtype=torch.bool) for window, parts in masks.items()
        },
    )


def _sees_everything(feed: Feed, num_cells: int, windows: Sequence[int | None]) -> bool:
    """One line token at the end of all cells, as in plain decoding, sees them all unless a window hides some."""
    return (
        len(feed.cells) == 1
        and feed.num_trunk == 1
        and feed.cells[0] == num_cells - 1
        and all(window is None or window >= num_cells for window in windows)
    )


def _visible(feed: Feed, stride: int) -> Tensor:
    """Which cells each fed token sees under full attention: the line up to itself, or the line and its path.

    [Q, stride]; the cells beyond the session's own, which pad the row, are not seen.
    """
    line_end = len(feed.job.line)
    limits = [cell + 1 for cell in feed.cells[: feed.num_trunk]] + [line_end] * len(feed.nodes)
    visible = torch.arange(stride) < torch.tensor(limits)[:, None]
    if feed.nodes:
        contents = feed.job.slot.cells | dict(feed.nodes)
        queries: list[int] = []
        seen: list[int] = []
        for query, (cell, _) in enumerate(feed.nodes, feed.num_trunk):
            while cell >= line_end:
                queries.append(query)
                seen.append(cell)
                cell = contents[cell].parent_cell
        visible[queries, seen] = True
    return visible


def _within_window(feed: Feed, visible: Tensor, window: int | None) -> Tensor:
    """Hides cells whose position is `window` or more behind the token's own."""
    if window is None or max(feed.positions) < window:
        return visible
    cell_positions = torch.arange(visible.shape[1])
    contents = feed.job.slot.cells | dict(feed.nodes)
    if contents:
        cell_positions[list(contents)] = torch.tensor([content.position for content in contents.values()])
    return visible & (cell_positions > torch.tensor(feed.positions)[:, None] - window)
