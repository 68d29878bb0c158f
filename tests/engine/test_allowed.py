"""Masks of tokens: rows with one choose as if the logits of all others had been -inf from the beginning."""

from __future__ import annotations

import math

import pytest
import torch

from outrider.engine.sample.allowed import allowed_of
from outrider.engine.sample.sampler import Row
from tests.engine.samplers import ALL_KINDS, VOCAB_SIZE, opened, random_logits

pytestmark = pytest.mark.usefixtures("each_chooser")

ROWS = [Row(slot, 20 + step, (4,) * step) for slot in range(len(ALL_KINDS)) for step in range(3)]


def masks_of(num_allowed: int, seed: int) -> tuple[torch.Tensor, list[bytes]]:
    """Which tokens each row may choose, [R, V] bool, and the same as bits, in more bytes than the vocabulary needs."""
    order = torch.rand(len(ROWS), VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    allowed = order < num_allowed
    numbers = [sum(1 << token_id for token_id in row.nonzero().flatten().tolist()) for row in allowed]
    return allowed, [number.to_bytes(VOCAB_SIZE // 8 + 5, "little") for number in numbers]


@pytest.mark.parametrize("num_allowed", [1, 3, 40, VOCAB_SIZE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_rows(num_allowed: int, dtype: torch.dtype) -> None:
    sampler, logits = opened(*ALL_KINDS), random_logits(len(ROWS)).to(dtype)
    allowed, masks = masks_of(num_allowed, 1)
    before = logits.clone()
    forbidden = logits.float().masked_fill(~allowed, -math.inf)
    given = allowed_of(range(len(ROWS)), masks)
    chosen = sampler.choose(logits, ROWS, given)
    assert chosen == sampler.choose(forbidden, ROWS)
    assert all(allowed[row, token_id] for row, token_id in enumerate(chosen))
    assert sampler.propose(logits, ROWS, 4, given) == sampler.propose(forbidden, ROWS, 4)
    assert torch.equal(logits, before)


def test_some_rows_and_the_others_as_before() -> None:
    sampler, logits = opened(*ALL_KINDS), random_logits(len(ROWS))
    _, masks = masks_of(5, 2)
    some = list(range(1, len(ROWS), 3))
    free, bound = sampler.choose(logits, ROWS), sampler.choose(logits, ROWS, allowed_of(range(len(ROWS)), masks))
    mixed = sampler.choose(logits, ROWS, allowed_of(some, [masks[row] for row in some]))
    assert mixed == [bound[row] if row in some else free[row] for row in range(len(ROWS))]


def test_where_nothing_is_allowed_nothing_is_proposed() -> None:
    sampler, logits = opened(*ALL_KINDS), random_logits(len(ROWS))
    nothing = allowed_of([0, 4], [bytes(64)] * 2)
    proposed, _ = sampler.propose(logits, ROWS, 3, nothing)
    assert [row for row, tokens in enumerate(proposed) if not tokens] == [0, 4]
    assert sampler.choose(logits, ROWS, nothing)[0] == 0


def test_no_rows_have_no_masks() -> None:
    assert allowed_of([], []) is None
