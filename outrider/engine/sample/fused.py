"""The choice of tokens on a GPU in one pass over the logits: the kernels of `outrider/engine/gpu/choice.py`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from outrider.core.protocol.refusal import first_line
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.validation import TREE_WIDTH_MAX
from outrider.engine.sample.best import Best, bests
from outrider.engine.sample.candidates import candidates, shaping_of
from outrider.engine.transfer import tensor_on

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
) -> list[Best | None]:
    """`outrider.engine.sample.native.best_of` on a GPU: one copy there, one back."""
    from outrider.engine.gpu.choice import best_tokens

    rows = tensor_on(logits.device, [slots, positions], torch.int64)
    return read(best_tokens(logits, shaping, seeds, rows, width))


def read(best: Tensor) -> list[Best | None]:
    """What `best_tokens` has found, brought from the device by one copy; see `bests`."""
    token_ids, scores = best.tolist()
    return bests([[int(token_id) for token_id in row] for row in token_ids], scores)


@cache
def problem(device: torch.device) -> str:
    """Why the kernels cannot choose on `device`; empty if they can.

    They are tried, since Triton compiles when it first runs, and what they choose is compared with the definition.
    """
    if device.type != "cuda":
        return "it is for CUDA devices"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    try:
        return "" if _agrees(device) else "what it chooses is not what the definition chooses"
    except Exception as error:  # Triton and the compilers below it raise whatever they meet
        return f"{type(error).__name__}: {first_line(error)}"


def _agrees(device: torch.device) -> bool:
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
    found = best_of(logits, shaping, seeds, slots, positions, _TRIED_WIDTH)
    in_step = _in_step(logits, shaping, seeds, slots, positions)
    return all([each and each.token_ids for each in both] == expected for both in (found, in_step))


def _in_step(
    logits: Tensor, shaping: Tensor, seeds: Tensor, slots: Sequence[int], positions: Sequence[int]
) -> list[Best | None]:
    """The same, told as a captured step is."""
    from outrider.engine.gpu.choice import Rows, choose

    widths = [_TRIED_WIDTH] * len(slots)
    told = tensor_on(logits.device, [slots, positions, widths], torch.int32)
    rows = Rows(*told, torch.full_like(seeds, _TRIED_VOCABULARY))
    best = torch.empty(2, len(slots), TREE_WIDTH_MAX, dtype=torch.float64, device=logits.device)
    choose(logits, shaping, seeds, rows, best)
    return read(best)
