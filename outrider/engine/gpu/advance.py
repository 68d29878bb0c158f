"""From one level of a draft to the next on a GPU: a kernel in Triton, so that the host stays out.

It does for each session by itself what `native/levels.cpp` does for all together: adds what was chosen below the nodes
of a level, by the same arithmetic in float64 and in the same order, then takes the likeliest nodes for the next level,
and writes them into the work list that the forward pass reads.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOptionalOperand=false
# pyright: reportOperatorIssue=false
# Triton comes with torch for GPUs alone, launches what it compiles by an index, and has types of its own in a kernel.
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from outrider.core.protocol.validation import TREE_WIDTH_MAX
from outrider.engine.gpu import frontiers as layout
from outrider.engine.gpu import launcher, work_list
from outrider.engine.gpu.frontiers import Frontiers
from outrider.engine.gpu.launch import DeviceWork

SLOT, LINE_END, WIDTH, CREDIT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
MAX_LENGTH, NUM_NODES, NUM_FED, NUM_FREE = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6), tl.constexpr(7)
LEVEL, IS_OVER, CELLS, PLACES = tl.constexpr(8), tl.constexpr(9), tl.constexpr(16), tl.constexpr(16 + layout.CELLS_MAX)
TOKEN, POSITION, ORIGIN, PARENT_CELL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
CELL, IS_TAKEN, MASK = tl.constexpr(4), tl.constexpr(5), tl.constexpr(8)
LOG_ROOT, LOG_FLOOR, OPENED_LOGS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Places in what `frontiers.py` lays out."""
ACCEPTANCES = tl.constexpr(layout.REALS)
NUM_GUESSES, GUESSES = tl.constexpr(layout.NUM_GUESSES), tl.constexpr(layout.GUESSES)
MARGINS, _HEAD = tl.constexpr(layout.MARGINS), tl.constexpr(layout.HEAD)
_NODES, _NODE, _SESSION, _OPENED = (
    tl.constexpr(layout.NODES_MAX),
    tl.constexpr(layout.NODE),
    tl.constexpr(layout.SESSION),
    tl.constexpr(layout.OPENED),
)
_OPENED_MAX, _LOG_ROW = tl.constexpr(layout.OPENED_MAX), tl.constexpr(layout.LOG_ROW)
_RANKS = tl.constexpr(TREE_WIDTH_MAX)
_NOT_TAKEN, _DOUBTFUL = tl.constexpr(layout.NOT_TAKEN), tl.constexpr(layout.DOUBTFUL)
_SIGHT, _WORD_0, _WORDS = (
    tl.constexpr(work_list.SIGHT),
    tl.constexpr(work_list.WORD_0),
    tl.constexpr(work_list.WORDS),
)
_TOKEN_IDS, _POSITIONS = tl.constexpr(work_list.TOKEN_IDS), tl.constexpr(work_list.POSITIONS)
_WRITE_CELLS, _ROW_SLOTS = tl.constexpr(work_list.WRITE_CELLS), tl.constexpr(work_list.ROW_SLOTS)
_ROW_POSITIONS, _ROW_CHOICES = tl.constexpr(work_list.ROW_POSITIONS), tl.constexpr(work_list.ROW_CHOICES)
NOTHING = tl.constexpr(float("-inf"))
ENDLESS = tl.constexpr(float("inf"))


def between(
    frontiers: Frontiers,
    best: Tensor,
    work: DeviceWork,
    scratch_cell: int,
    *,
    expands: bool,
    takes: bool,
) -> None:
    """What happens between two levels: adds below the latest one's nodes what `best` [2, N, TREE_WIDTH_MAX] has of each
    row, if it `expands`, and makes the next one's work, if it `takes`."""
    (num_sessions, num_reals), num_rows = frontiers.reals.shape, best.shape[1]
    launcher.run(
        advance,
        (num_sessions,),
        *frontiers,
        best,
        work.numbers,
        work.layout.row,
        work.layout.first_sight(0),
        scratch_cell,
        REALS=num_reals,
        BUCKETS=(num_reals - layout.REALS) // TREE_WIDTH_MAX,
        WINDOWS=len(frontiers.windows),
        ROWS=num_rows,
        EXPANDS=expands,
        TAKES=takes,
    )


@triton.jit
def advance(
    integers,
    reals,
    nodes,
    log_probs,
    taken,
    log,
    edges,
    windows,
    best,
    numbers,
    row_stride,
    first_sight,
    scratch_cell,
    REALS: tl.constexpr,
    BUCKETS: tl.constexpr,
    WINDOWS: tl.constexpr,
    ROWS: tl.constexpr,
    EXPANDS: tl.constexpr,
    TAKES: tl.constexpr,
):
    """Grid [S]. A session has rows of its own, one after another."""
    session = tl.program_id(0)
    if session >= tl.load(integers):
        return
    num_rows = tl.load(integers + 1)
    first_row = session * num_rows
    own = integers + _HEAD + session * _SESSION
    its = reals + session * REALS
    entries = nodes + session * (_NODES * _NODE)
    chances = log_probs + session * _NODES
    line_end = tl.load(own + LINE_END)
    width = tl.load(own + WIDTH)
    credit = tl.load(own + CREDIT)
    num_nodes = tl.load(own + NUM_NODES)
    level = tl.load(own + LEVEL)
    is_over = tl.load(own + IS_OVER)
    log_root = tl.load(its + LOG_ROOT)
    log_floor = tl.load(its + LOG_FLOOR)
    words = tl.arange(0, _WORDS)
    ranks = tl.arange(0, _RANKS)
    if EXPANDS:
        max_length = tl.load(own + MAX_LENGTH)
        bounds = tl.load(edges + tl.arange(0, 16))
        for index in range(0, num_rows):
            row = first_row + index
            node = tl.load(taken + row)
            if node >= 0:
                # See `DraftSession.expand`.
                entry = entries + node * _NODE
                position = tl.load(entry + POSITION)
                cell = tl.load(entry + CELL)
                mask = tl.load(entry + MASK + words)
                chance = tl.load(chances + node)
                token_ids = tl.load(best + row * _RANKS + ranks)
                scores = tl.load(best + (ROWS + row) * _RANKS + ranks)
                num_found = tl.sum((scores > NOTHING).to(tl.int32), 0)
                first = tl.sum(tl.where(ranks == 0, scores, 0.0), 0)
                second = tl.sum(tl.where(ranks == 1, scores, 0.0), 0)
                is_doubtful = (num_found > 0) & (tl.sum(tl.where(ranks == 0, token_ids, 0.0), 0) < 0.0)
                num_guesses = tl.where(is_doubtful, 0, tl.minimum(num_found, width))
                is_left = ranks < num_guesses
                margins = tl.where(ranks == 0, tl.where(num_found > 1, first - second, ENDLESS), first - scores)
                margins = tl.where(is_left, margins, 0.0)
                buckets = tl.sum((bounds[None, :] < margins[:, None]).to(tl.int32), 1)
                accepted = tl.load(its + ACCEPTANCES + ranks * BUCKETS + buckets, mask=is_left, other=NOTHING)
                told = log + (level * ROWS + row) * _LOG_ROW
                tl.store(told + NUM_GUESSES, tl.where(is_doubtful, _DOUBTFUL, num_guesses).to(tl.float64))
                tl.store(told + GUESSES + ranks, token_ids)
                tl.store(told + MARGINS + ranks, margins)
                is_over = tl.where(is_doubtful, 1, is_over)
                floor = log_floor + log_root - chance
                for _ in range(0, num_guesses):
                    likeliest = tl.max(tl.where(is_left, accepted, NOTHING), 0)
                    rank = tl.min(tl.where(is_left & (accepted == likeliest), ranks, _RANKS), 0)
                    is_kept = (rank < _RANKS) & (likeliest >= floor)
                    credit -= is_kept.to(tl.int32)
                    has_place = is_kept & (position + 2 < max_length) & (num_nodes < _NODES)
                    new = entries + num_nodes * _NODE
                    token = tl.sum(tl.where(ranks == rank, token_ids, 0.0), 0).to(tl.int32)
                    tl.store(new + TOKEN, token, mask=has_place)
                    tl.store(new + POSITION, position + 1, mask=has_place)
                    tl.store(new + ORIGIN, level * ROWS + row, mask=has_place)
                    tl.store(new + PARENT_CELL, cell, mask=has_place)
                    tl.store(new + IS_TAKEN, 0, mask=has_place)
                    tl.store(new + MASK + words, mask, mask=words < has_place.to(tl.int32) * _WORDS)
                    tl.store(chances + num_nodes, chance + likeliest, mask=has_place)
                    num_nodes += has_place.to(tl.int32)
                    is_left = is_left & (ranks != rank)
        level += 1
        tl.store(own + LEVEL, level)
        tl.store(own + CREDIT, credit)
        tl.store(own + IS_OVER, is_over)
        tl.store(own + NUM_NODES, num_nodes)
    elif level == 0:
        opened = tl.arange(0, _OPENED_MAX * _NODE)
        tl.store(entries + opened, tl.load(own + _OPENED + opened))
        beginnings = tl.arange(0, _OPENED_MAX)
        tl.store(chances + beginnings, tl.load(its + OPENED_LOGS + beginnings))
    if TAKES:
        # See `choose_expansions`: of one session all that is worth it, up to its share of the rows.
        tl.debug_barrier()
        slot = tl.load(own + SLOT)
        num_fed = tl.load(own + NUM_FED)
        num_free = tl.load(own + NUM_FREE)
        places = tl.arange(0, _NODES)
        is_taken = tl.load(entries + places * _NODE + IS_TAKEN, mask=places < num_nodes, other=1)
        worth = tl.load(chances + places, mask=is_taken == 0, other=NOTHING)
        num_taken = tl.full([], 0, tl.int32)
        for index in range(0, num_rows):
            likeliest = tl.max(worth, 0)
            node = tl.min(tl.where(worth == likeliest, places, _NODES), 0)
            is_used = (is_over == 0) & (likeliest > NOTHING) & (likeliest - log_root >= log_floor)
            is_used = is_used & (credit >= (num_taken + 1) * width) & (num_fed < num_free)
            entry = entries + node * _NODE
            token = tl.load(entry + TOKEN, mask=is_used, other=0)
            position = tl.load(entry + POSITION, mask=is_used, other=0)
            cell = tl.load(own + CELLS + num_fed, mask=is_used, other=0)
            place = tl.load(own + PLACES + num_fed, mask=is_used, other=scratch_cell)
            behind = tl.where(is_used, cell - line_end, 0)
            are_used = words < is_used.to(tl.int32) * _WORDS
            mask = tl.load(entry + MASK + words, mask=are_used, other=0)
            mask = tl.where(are_used & (words == behind // 32), mask | (1 << (behind % 32)), mask)
            tl.store(entry + CELL, cell, mask=is_used)
            tl.store(entry + IS_TAKEN, 1, mask=is_used)
            tl.store(entry + MASK + words, mask, mask=are_used)
            row = first_row + index
            node = tl.where(is_used, node, -1)
            tl.store(taken + row, node)
            tl.store(numbers + _TOKEN_IDS * row_stride + row, token)
            tl.store(numbers + _POSITIONS * row_stride + row, position)
            tl.store(numbers + _WRITE_CELLS * row_stride + row, place)
            tl.store(numbers + _ROW_SLOTS * row_stride + row, slot)
            tl.store(numbers + _ROW_POSITIONS * row_stride + row, position + 1)
            tl.store(numbers + _ROW_CHOICES * row_stride + row, tl.where(is_used, tl.maximum(width, 2), 0))
            for window in tl.static_range(WINDOWS):
                # A row without a node sees the end of the line: something finite, and nothing that has to be read.
                lowest = tl.minimum(tl.maximum(position - tl.load(windows + window) + 1, 0), line_end)
                sight = numbers + first_sight + (window * ROWS + row) * _SIGHT
                tl.store(sight, tl.where(is_used, lowest, line_end - 1))
                tl.store(sight + 1, line_end)
                tl.store(sight + _WORD_0 + words, mask)
            told = log + (level * ROWS + row) * _LOG_ROW
            tl.store(told + TOKEN, token.to(tl.float64))
            tl.store(told + POSITION, position.to(tl.float64))
            tl.store(told + ORIGIN, tl.load(entry + ORIGIN, mask=is_used, other=0).to(tl.float64))
            tl.store(told + PARENT_CELL, tl.load(entry + PARENT_CELL, mask=is_used, other=0).to(tl.float64))
            tl.store(told + CELL, cell.to(tl.float64))
            tl.store(told + NUM_GUESSES, tl.full([], _NOT_TAKEN, tl.float64))
            worth = tl.where(places == node, NOTHING, worth)
            num_taken += is_used.to(tl.int32)
            num_fed += is_used.to(tl.int32)
        tl.store(own + NUM_FED, num_fed)
