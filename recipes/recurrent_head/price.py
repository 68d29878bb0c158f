"""What a level costs, and which shape of rounds is best at that price."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from outrider.engine import native
from outrider.engine.compile.linear import PackedLinear
from outrider.worker.config import default_compile_cache
from recipes.distill.acceptance import CHAIN, MASKS
from recipes.recurrent_head.drafting import Shape
from recipes.recurrent_head.head import Heads

NUM_TIMED = 200
"""Timed levels of each kind; the kinds take turns."""


def products(modules: Sequence[nn.Module]) -> list[nn.Linear]:
    """The matrices by which a row is multiplied."""
    linears = [each for module in modules for each in module.modules() if isinstance(each, nn.Linear)]
    for cell in (each for module in modules for each in module.modules() if isinstance(each, nn.GRUCell)):
        for weight in (cell.weight_ih, cell.weight_hh):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight.data = weight.data
            linears.append(linear)
    return linears


@torch.inference_mode()
def level_seconds(matrices: Mapping[str, tuple[Sequence[nn.Linear], int]]) -> dict[str, float]:
    """Processor time of the products of a level, the median, by name: of these matrices over that many rows.

    In bfloat16 by our own operators, where there are some. Attention, norms and activations are left out, which the
    draft model has more of.
    """
    native.load(default_compile_cache())
    dtype = torch.bfloat16 if native.has_linear(torch.bfloat16) else torch.float32
    ready: dict[str, list[Callable[[], Tensor]]] = {}
    for name, (linears, num_rows) in matrices.items():
        ready[name] = []
        for linear in linears:
            own = nn.Linear(linear.in_features, linear.out_features, bias=False, dtype=dtype)
            own.weight.data = linear.weight.data.to(dtype)
            product = PackedLinear(own) if native.has_linear(dtype) else own
            row = torch.randn(num_rows, linear.in_features).to(dtype)
            ready[name].append(lambda product=product, row=row: product(row))
    taken: dict[str, list[float]] = {name: [] for name in matrices}
    for _ in range(NUM_TIMED):
        for name, work in ready.items():
            _run(work)  # fetches what other kinds have displaced
            taken[name].append(_run(work))
    return {name: statistics.median(each) for name, each in taken.items()}


def _run(work: Sequence[Callable[[], Tensor]]) -> float:
    started = time.thread_time()
    for each in work:
        each()
    return time.thread_time() - started


class Price(NamedTuple):
    """What a level costs."""

    num_products: int
    """Multiplications of its matrices for each row, and numbers of weights that it reads."""
    level: float
    """Processor time in passes of the draft model over one row; of MASKS what each mask adds to one."""


def prices(draft: PreTrainedModel, heads: Heads, num_depths: int) -> dict[str, Price]:
    """By way of drafting; of CHAIN that of a pass."""
    output = draft.get_output_embeddings()
    assert output is not None
    whole = products([draft.get_decoder(), output])
    matrices = {CHAIN: (whole, 1), MASKS: (whole, num_depths)}
    matrices |= {kind: (products([head, output]), 1) for kind, head in heads.items()}
    seconds = level_seconds(matrices)
    levels = {name: each / seconds[CHAIN] for name, each in seconds.items()}
    levels[MASKS] = (levels[MASKS] - 1) / (num_depths - 1)
    return {
        name: Price(sum(each.weight.numel() for each in linears), levels[name])
        for name, (linears, _) in matrices.items()
    }


class Best(NamedTuple):
    """The shape of rounds that is fastest in turn with the target."""

    speed_up: float
    """Over the target alone: tokens of a round over its time in target steps, of which verifying takes one."""
    shape: Shape
    length: float
    """Tokens of a round."""


def best(lengths: Mapping[Shape, float], draft_step: float, level: float) -> Best:
    """Of shapes with their accepted lengths, where a level costs `level` passes, and a pass `draft_step` target
    steps."""
    return max(
        Best(length / (1 + draft_step * (passes + level * levels)), (passes, levels), length)
        for (passes, levels), length in lengths.items()
    )
