"""The choice of tokens on a GPU in one pass over the logits: the kernels of `outrider/engine/gpu/choice.py`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import torch
from torch import Tensor

from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.validation import TREE_WIDTH_MAX
from outrider.engine.gpu.trial import trial, triton_problem
from outrider.engine.sample.best import Best, Pending, bests
from outrider.engine.sample.candidates import candidates, shaping_of
from outrider.engine.transfer import Fetched, tensor_on

WIDTH_MAX = 16
"""Most tokens of a row that are asked for: the kernel compares with each of them. Trees are half as wide at most."""

_TRIED = (
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=1),
    SamplingParams(temperature=1.0, top_k=20, seed=2),
    SamplingParams(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02, seed=3),
)
_TRIED_POSITIONS = 8
_TRIED_VOCABULARY = 5000
"""Two tiles."""
_TRIED_WIDTH = 2


def best_of(
    logits: Tensor,
    shaping: Tensor,
    seeds: Tensor,
    slots: Sequence[int],
    positions: Sequence[int],
    width: int,
) -> Pending:
    """`outrider.engine.sample.native.best_of` on a GPU: one copy there, one back, both queued."""
    from outrider.engine.gpu.choice import best_tokens

    rows = tensor_on(logits.device, [slots, positions], torch.int64)
    return fetch(best_tokens(logits, shaping, seeds, rows, width))


def fetch(best: Tensor) -> Pending:
    """Queues the copy to the host of what `best_tokens` finds."""
    found = Fetched(best)

    def read() -> list[Best | None]:
        token_ids, scores = found.wait().tolist()
        return bests([[int(token_id) for token_id in row] for row in token_ids], scores)

    return read


@cache
def problem(device: torch.device) -> str:
    """Why the kernels cannot choose on `device`; empty if they can. They are tried: every choice has to be the
    definition's."""
    return triton_problem(device) or trial(partial(_off, device), 0.0)


def _off(device: torch.device) -> float:
    """For which share of the rows that are tried the kernels do not choose what the definition chooses."""
    generator = torch.Generator().manual_seed(1)
    slots = [slot for slot in range(len(_TRIED)) for _ in range(_TRIED_POSITIONS)]
    positions = list(range(len(slots)))
    logits = (torch.randn(len(slots), _TRIED_VOCABULARY, generator=generator) * 3).bfloat16().to(device)
    shaping = tensor_on(device, [shaping_of(each, _TRIED_VOCABULARY) for each in _TRIED], torch.float64).T.contiguous()
    seeds = tensor_on(device, [each.seed for each in _TRIED], torch.int64)
    which, where = tensor_on(device, [slots, positions], torch.int64)
    params = [_TRIED[slot] for slot in slots]
    best = candidates(logits.float(), params, shaping[:, which], seeds[which], where, _TRIED_WIDTH).best(_TRIED_WIDTH)
    expected = [each.token_ids for each in best]
    found = best_of(logits, shaping, seeds, slots, positions, _TRIED_WIDTH)()
    in_step = _in_step(logits, shaping, seeds, slots, positions)
    wrong = sum(
        (each and each.token_ids) != token_ids
        for both in (found, in_step)
        for each, token_ids in zip(both, expected, strict=True)
    )
    return wrong / (2 * len(slots))


def _in_step(
    logits: Tensor, shaping: Tensor, seeds: Tensor, slots: Sequence[int], positions: Sequence[int]
) -> list[Best | None]:
    """What `best_of` finds, told as a captured step is."""
    from outrider.engine.gpu.choice import Rows, choose

    told = tensor_on(logits.device, [slots, positions, [_TRIED_WIDTH] * len(slots)], torch.int32)
    rows = Rows(told[0], told[1], told[2], torch.full_like(seeds, _TRIED_VOCABULARY))
    best = torch.empty(2, len(slots), TREE_WIDTH_MAX, dtype=torch.float64, device=logits.device)
    choose(logits, shaping, seeds, rows, best)
    return fetch(best)()
