"""Masks for attention kernels that want one: which cell each token of a packed batch sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.engine.batch import PackedBatch, SessionSpan

NO_MASK = -1
"""In a span: every query of the session sees every cell of it, so it has no mask."""

SCATTERED = -1
"""In a span: the session's blocks do not stand in a row in the KV cache."""

MASK_ALIGNMENT = 16
"""Elements that the rows of a mask, and so the masks of a batch, begin at multiples of. CUDA's memory-efficient kernel
reads masks 16 bytes at a time, from wherever they begin."""


def mask_stride(num_cells: int) -> int:
    """Elements from one row of a mask over `num_cells` cells to the next."""
    return -(-num_cells // MASK_ALIGNMENT) * MASK_ALIGNMENT


def spans_and_masks(batch: PackedBatch, windows: Sequence[int | None]) -> tuple[Tensor, dict[int | None, Tensor]]:
    """The spans of `SessionSteps` and, for each sliding window (None: full attention), all sessions' masks.

    The masks are bool, True is visible, raveled one after the other with their rows padded to `mask_stride`.
    """
    spans: list[list[int]] = []
    masks: dict[int | None, list[Tensor]] = {window: [] for window in windows}
    mask_size = 0
    for session in batch.sessions:
        offset = NO_MASK
        if not _sees_everything(batch, session, windows):
            offset = mask_size
            mask_size += (session.end_token - session.first_token) * mask_stride(session.num_cells)
            for window in windows:
                masks[window].append(_visible(batch, session, window).flatten())
        spans.append([*session, _first_cell(batch, session), offset])
    return torch.tensor(spans).view(-1, 6), {
        window: torch.cat(parts) if parts else torch.empty(0, dtype=torch.bool) for window, parts in masks.items()
    }


def _first_cell(batch: PackedBatch, session: SessionSpan) -> int:
    """Where in the KV cache the session's cells stand if they stand in a row there, SCATTERED if they do not."""
    num_blocks = -(-session.num_cells // batch.block_cells)
    first, *_ = blocks = batch.blocks[session.first_block : session.first_block + num_blocks]
    return first * batch.block_cells if blocks == list(range(first, first + num_blocks)) else SCATTERED


def _sees_everything(batch: PackedBatch, session: SessionSpan, windows: Sequence[int | None]) -> bool:
    """One line token at the end of all cells, as in plain decoding, sees them all unless a window hides some."""
    return (
        session.end_token - session.first_token == 1
        and batch.limits[session.first_token] == session.num_cells
        and all(window is None or window >= session.num_cells for window in windows)
    )


def _visible(batch: PackedBatch, session: SessionSpan, window: int | None) -> Tensor:
    """Which cells each of the session's tokens sees, [Q, mask_stride]; cells beyond the session's own are not seen."""
    tokens = range(session.first_token, session.end_token)
    limits = torch.tensor(batch.limits[session.first_token : session.end_token])[:, None]  # [Q, 1]
    cells = torch.arange(mask_stride(session.num_cells))
    visible = cells < limits
    if window is not None:
        positions = torch.tensor(batch.positions[session.first_token : session.end_token])[:, None]
        visible &= cells > positions - window
    queries: list[int] = []
    seen: list[int] = []
    for query, token in enumerate(tokens):
        path = batch.path_cells[batch.path_offsets[token] : batch.path_offsets[token + 1]]
        if window is not None:
            path = path[-window:]
        queries += [query] * len(path)
        seen += path
    visible[queries, seen] = True
    return visible
