"""The choice of tokens on a GPU: two kernels in Triton that read each logit once, where no filter drops the winner.

`scan` looks at all logits in float32, a tile at a time: of each tile it keeps the best perturbed score, the highest
logit, and the sum of the weights over that. `decide` takes what comes so close to a row's best score that rounding may
decide, and computes it again in float64 as `outrider.engine.sample.noise` does. Filters are asked about the winner
alone, so nothing is sorted: one that is dropped takes all that rank behind it along, and the next is looked at. It is
what `native/sampling.cpp` does on a CPU, and its bounds on rounding are the same.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# Triton comes with torch for GPUs alone, launches what it compiles by an index, and has types of its own in a kernel.
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from outrider.engine.gpu import launcher

TILE = 4096
"""Tokens that one program looks at: eight kilobytes of logits in 16 bits."""

GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
FIRST = tl.constexpr(0xBF58476D1CE4E5B9)
SECOND = tl.constexpr(0x94D049BB133111EB)
"""The constants of noise.py's hash."""
LAST_UNIFORM = tl.constexpr(2**52 - 1)
"""Number of the uniform that is next to 1."""
UNIT = tl.constexpr(2.0**-52)
NOTHING = tl.constexpr(float("-inf"))

SERIES_BELOW = tl.constexpr(1 / 32)
"""Nearer to 1 a float32 of a uniform has no digits left of its logarithm, whose series then needs six terms."""
ROUNDING = tl.constexpr(2e-4)
RELATIVE_ROUNDING = tl.constexpr(2e-6)
"""Two scores of float32 that differ by less than this, and this share of their size, are compared in float64."""
DOUBT = tl.constexpr(1e-5)
"""Sums of float32 weights may be off by this share of the row's; where top-p turns on less, a row is left undecided."""
DIGIT = tl.constexpr(8)
"""Bits of a rank key that are settled at a time, of 32."""
DIGITS = tl.constexpr(256)
"""How many values they have."""


class Rows(NamedTuple):
    """For whom R rows of logits are. Integers of any type."""

    slots: Tensor
    """[R]"""
    positions: Tensor
    """[R], of the tokens to choose."""
    widths: Tensor | None = None
    """[R]: how many tokens are wanted of each row; where none is, nothing is computed. None: as many as find room."""
    vocab_sizes: Tensor | None = None
    """[num_slots]: token ids from there on are not chosen; None: all may be."""


def best_tokens(logits: Tensor, shaping: Tensor, seeds: Tensor, rows: Tensor, width: int, tile: int = TILE) -> Tensor:
    """The `width` best tokens of each row of `logits` [R, V], [2, R, width] float64: token ids, and perturbed scores.

    `rows` [2, R] int64 holds each row's slot and the position of its token; for each slot there is a column of
    `shaping` [5, num_slots] float64: temperature, top_k, top_p, log(min_p), scale of the noise; and one of `seeds`
    [num_slots].
    Scores are -inf from where the filters leave no token; ids are -1 in a row in which rounding may decide what top-p
    keeps. Nothing waits for the device.
    """
    best = torch.empty(2, len(logits), width, dtype=torch.float64, device=logits.device)
    choose(logits, shaping, seeds, Rows(*rows), best, tile)
    return best


def choose(logits: Tensor, shaping: Tensor, seeds: Tensor, rows: Rows, best: Tensor, tile: int = TILE) -> None:
    """Writes to `best` [2, R, width] what `best_tokens` returns. It can be captured."""
    num_rows, vocab_size = logits.shape
    tile = min(tile, triton.next_power_of_2(vocab_size))
    num_tiles, num_slots = -(-vocab_size // tile), len(seeds)
    scanned = torch.empty(3, num_rows, num_tiles, dtype=torch.float32, device=logits.device)
    told = (logits.contiguous(), shaping, seeds, *rows, scanned)
    sizes = {"VOCAB": vocab_size, "TILE": tile}
    launcher.run(scan, (num_rows, num_tiles), *told, num_slots, **sizes)
    launcher.run(decide, (num_rows,), *told, best, num_slots, **sizes, WIDTH=best.shape[2], num_warps=8)


@triton.jit
def scan(
    logits,
    shaping,
    seeds,
    slots,
    positions,
    widths,
    vocab_sizes,
    scanned,
    num_slots,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid [R, tiles]. `scanned` [3, R, tiles]: best score, highest logit, sum of exp((logit - highest) / T)."""
    row, tile = tl.program_id(0), tl.program_id(1)
    num_rows, num_tiles = tl.num_programs(0), tl.num_programs(1)
    if widths is not None:  # noqa: SIM102  Triton has to know this when it compiles
        if tl.load(widths + row) == 0:
            return
    temperature, _, _, _, noise_scale, stream = _shape(shaping, seeds, slots, positions, row, num_slots)
    end = _vocabulary(vocab_sizes, slots, row, VOCAB)
    inverse = (1.0 / temperature).to(tl.float32)
    token_ids = tile * TILE + tl.arange(0, TILE)
    x = _loaded(logits, row, token_ids, end, VOCAB)
    highest = tl.max(x, 0)
    above = tl.where(highest > NOTHING, highest, 0.0)
    place = scanned + row.to(tl.int64) * num_tiles + tile
    step = num_rows.to(tl.int64) * num_tiles
    tl.store(place, tl.max(_scores(x, token_ids, stream, inverse, noise_scale), 0))
    tl.store(place + step, highest)
    tl.store(place + 2 * step, tl.sum(tl.exp((x - above) * inverse), 0))


@triton.jit
def decide(
    logits,
    shaping,
    seeds,
    slots,
    positions,
    widths,
    vocab_sizes,
    scanned,
    best,
    num_slots,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Grid [R]. What `scan` found in; the WIDTH best out, [2, R, WIDTH], or of a row fewer."""
    row, num_rows = tl.program_id(0), tl.num_programs(0)
    width = WIDTH
    if widths is not None:
        width = tl.load(widths + row).to(tl.int32)
        if width == 0:
            return
    temperature, top_k, top_p, log_min_p, noise_scale, stream = _shape(shaping, seeds, slots, positions, row, num_slots)
    end = _vocabulary(vocab_sizes, slots, row, VOCAB)
    inverse = (1.0 / temperature).to(tl.float32)
    num_tiles: tl.constexpr = (VOCAB + TILE - 1) // TILE
    tiles = tl.arange(0, triton.next_power_of_2(num_tiles))
    place = scanned + row.to(tl.int64) * num_tiles + tiles
    step = num_rows.to(tl.int64) * num_tiles
    scores = tl.load(place, mask=tiles < num_tiles, other=NOTHING)
    peaks = tl.load(place + step, mask=tiles < num_tiles, other=NOTHING)
    sums = tl.load(place + 2 * step, mask=tiles < num_tiles, other=0.0)
    highest = tl.max(peaks, 0)
    above = tl.where(highest > NOTHING, highest, 0.0)
    mass = tl.sum((tl.exp((peaks - above) * inverse) * sums).to(tl.float64), 0)
    by_rank = top_k < VOCAB
    by_mass = top_p < 1.0
    least = highest.to(tl.float64) / temperature + log_min_p

    order = tl.arange(0, triton.next_power_of_2(WIDTH))
    found = tl.full(order.shape, -1, tl.int64)
    found_scores = tl.full(order.shape, NOTHING, tl.float64)
    num_found = 0
    is_doubtful = False
    is_whole = not by_rank  # whether `mass` is that of what top-k keeps
    end_logit = tl.full([], NOTHING, tl.float32)  # the tokens left rank before this one
    end_token = tl.full([], VOCAB, tl.int64)
    is_open = True
    while is_open:
        # The best of those left, in float64.
        largest = tl.max(scores, 0)
        close = largest - (ROUNDING + RELATIVE_ROUNDING * tl.abs(largest))
        near = tl.where(scores >= close, scores, NOTHING)
        token = tl.full([], -1, tl.int64)
        score = tl.full([], NOTHING, tl.float64)
        while tl.max(near, 0) > NOTHING:
            tile = tl.argmax(near, 0)
            near = tl.where(tiles == tile, NOTHING, near)
            token_ids = tile * TILE + tl.arange(0, TILE)
            x = _left(logits, row, token_ids, found, end_logit, end_token, end, VOCAB, WIDTH)
            is_near = _scores(x, token_ids, stream, inverse, noise_scale) >= close
            exact = x.to(tl.float64) / temperature + _noise(stream, token_ids) * noise_scale
            exact = tl.where(is_near, exact, NOTHING)
            tile_score = tl.max(exact, 0)
            tile_token = tl.min(tl.where(is_near & (exact == tile_score), token_ids, VOCAB), 0).to(tl.int64)
            is_better = (tile_score > score) | ((tile_score == score) & (tile_token < token))
            token = tl.where(is_better, tile_token, token)
            score = tl.where(is_better, tile_score, score)
        if token < 0:
            is_open = False
        else:
            logit = tl.load(logits + row.to(tl.int64) * VOCAB + token).to(tl.float32)
            is_kept = logit.to(tl.float64) / temperature >= least
            if is_kept and (by_rank or by_mass):
                num_ahead = tl.full([], 0, tl.int32)
                mass_ahead = tl.full([], 0.0, tl.float64)
                for tile in range(num_tiles):
                    token_ids = tile * TILE + tl.arange(0, TILE)
                    x = _loaded(logits, row, token_ids, end, VOCAB)
                    is_ahead = (x > logit) | ((x == logit) & (token_ids < token))
                    num_ahead += tl.sum(is_ahead.to(tl.int32), 0)
                    mass_ahead += tl.sum(tl.where(is_ahead, tl.exp((x - above) * inverse), 0.0), 0).to(tl.float64)
                if num_ahead >= top_k:
                    is_kept = False
                elif by_mass:
                    if not is_whole:
                        mass = _mass_of_first(logits, row, top_k.to(tl.int32), above, inverse, end, VOCAB, TILE)
                        is_whole = True
                    excess = mass_ahead - top_p * mass
                    is_doubtful = is_doubtful or tl.abs(excess) <= DOUBT * mass
                    is_kept = excess < 0.0
            if is_kept:
                found = tl.where(order == num_found, token, found)
                found_scores = tl.where(order == num_found, score, found_scores)
                num_found += 1
                is_open = num_found < width
            else:
                end_logit = logit
                end_token = token
            if is_open:
                first = tl.where(is_kept, token // TILE, 0).to(tl.int32)
                last = tl.where(is_kept, first, num_tiles - 1).to(tl.int32)
                for tile in range(first, last + 1):
                    token_ids = tile * TILE + tl.arange(0, TILE)
                    x = _left(logits, row, token_ids, found, end_logit, end_token, end, VOCAB, WIDTH)
                    tile_score = tl.max(_scores(x, token_ids, stream, inverse, noise_scale), 0)
                    scores = tl.where(tiles == tile, tile_score, scores)
    place = best + row.to(tl.int64) * WIDTH + order
    tl.store(place, tl.where(is_doubtful, -1.0, found.to(tl.float64)), mask=order < WIDTH)
    tl.store(place + num_rows.to(tl.int64) * WIDTH, found_scores, mask=order < WIDTH)


@triton.jit
def _shape(shaping, seeds, slots, positions, row, num_slots):
    """The row's column of `shaping`, and its stream of noise."""
    slot = tl.load(slots + row)
    position = tl.load(positions + row).to(tl.int64).to(tl.uint64, bitcast=True)
    seed = tl.load(seeds + slot).to(tl.uint64, bitcast=True)
    stream = _mixed(_mixed(seed + GAMMA) + (position + 1) * GAMMA)
    at = shaping + slot
    temperature, top_k, top_p = tl.load(at), tl.load(at + num_slots), tl.load(at + 2 * num_slots)
    return temperature, top_k, top_p, tl.load(at + 3 * num_slots), tl.load(at + 4 * num_slots), stream


@triton.jit
def _vocabulary(vocab_sizes, slots, row, VOCAB: tl.constexpr):
    """Where the row's vocabulary ends."""
    end = tl.full([], VOCAB, tl.int64)
    if vocab_sizes is not None:
        end = tl.load(vocab_sizes + tl.load(slots + row))
    return end


@triton.jit
def _loaded(logits, row, token_ids, end, VOCAB: tl.constexpr):
    """The row's logits in float32; -inf beyond the vocabulary and for NaN."""
    place = logits + row.to(tl.int64) * VOCAB + token_ids
    x = tl.load(place, mask=token_ids < end, other=NOTHING).to(tl.float32)
    return tl.where(x == x, x, NOTHING)


@triton.jit
def _left(logits, row, token_ids, found, end_logit, end_token, end, VOCAB: tl.constexpr, WIDTH: tl.constexpr):
    """The same, and -inf for what was found and for what does not rank before the end."""
    x = _loaded(logits, row, token_ids, end, VOCAB)
    is_left = (x > end_logit) | ((x == end_logit) & (token_ids < end_token))
    order = tl.arange(0, triton.next_power_of_2(WIDTH))
    for place in tl.static_range(WIDTH):
        is_left = is_left & (token_ids != tl.sum(tl.where(order == place, found, 0), 0))
    return tl.where(is_left, x, NOTHING)


@triton.jit
def _scores(x, token_ids, stream, inverse, noise_scale):
    """Perturbed scores, good to ROUNDING / 2 and RELATIVE_ROUNDING / 2."""
    scores = x * inverse
    if noise_scale > 0.0:
        word = (_words(stream, token_ids) >> 12).to(tl.int64)
        uniform = (word.to(tl.float32) + 0.5) * UNIT
        distance = ((word ^ LAST_UNIFORM).to(tl.float32) + 0.5) * UNIT  # of the uniform from 1
        series = distance * (1.0 / 6.0) + 1.0 / 5.0
        series = series * distance + 1.0 / 4.0
        series = series * distance + 1.0 / 3.0
        series = series * distance + 1.0 / 2.0
        series = (series * distance + 1.0) * distance
        exponential = tl.where(distance < SERIES_BELOW, series, -tl.log(uniform))
        scores += -tl.log(exponential) * noise_scale.to(tl.float32)
    return scores


@triton.jit
def _noise(stream, token_ids):
    """Gumbel noise as noise.py computes it."""
    uniform = ((_words(stream, token_ids) >> 12).to(tl.int64).to(tl.float64) + 0.5) * UNIT
    return -tl.log(-tl.log(uniform))


@triton.jit
def _words(stream, token_ids):
    return _mixed(stream + (token_ids.to(tl.uint64) + 1) * GAMMA)


@triton.jit
def _mixed(word):
    word = (word ^ (word >> 30)) * FIRST
    word = (word ^ (word >> 27)) * SECOND
    return word ^ (word >> 31)


@triton.jit
def _mass_of_first(logits, row, count, above, inverse, end, VOCAB: tl.constexpr, TILE: tl.constexpr):
    """The sum of weights of the `count` tokens that rank first: the key of the last of them is found digit by digit."""
    num_tiles: tl.constexpr = (VOCAB + TILE - 1) // TILE
    digits = tl.arange(0, 512)  # from DIGITS on they stand for tokens that are out already
    key = tl.full([], 0, tl.int64)
    num_left = count
    for shift in tl.static_range(24, -1, -8):
        counts = tl.zeros(digits.shape, tl.int32)
        for tile in range(num_tiles):
            keys = _keys(_loaded(logits, row, tile * TILE + tl.arange(0, TILE), end, VOCAB)) >> shift
            values = tl.where(keys >> DIGIT == key, keys & 255, DIGITS)
            counts += tl.histogram(values.to(tl.int32), 512)
        counts = tl.where(digits < DIGITS, counts, 0)
        num_from = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
        digit = tl.max(tl.where(num_from >= num_left, digits, 0), 0)
        num_left -= tl.sum(tl.where(digits == digit, num_from - counts, 0), 0)
        key = (key << DIGIT) + digit
    mass = tl.full([], 0.0, tl.float64)
    last = tl.full([], 0.0, tl.float32)
    for tile in range(num_tiles):
        x = _loaded(logits, row, tile * TILE + tl.arange(0, TILE), end, VOCAB)
        weights = tl.exp((x - above) * inverse)
        mass += tl.sum(tl.where(_keys(x) > key, weights, 0.0), 0).to(tl.float64)
        last = tl.maximum(last, tl.max(tl.where(_keys(x) == key, weights, 0.0), 0))
    return mass + last.to(tl.float64) * num_left


@triton.jit
def _keys(x):
    """For each float32 an integer of 32 bits, in int64: the larger, the larger the float."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # of negative floats the larger bits are the smaller number
    return ordered.to(tl.int64) + 2**31
