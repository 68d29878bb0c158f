"""A model as one graph over packed batches, of native operators wherever there are some: what runs on a CPU.

It runs operator by operator, or compiled ahead of time. In float32 both give the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers import PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.core.protocol.refusal import first_line
from outrider.engine.attention.native import NATIVE_ATTENTION
from outrider.engine.compile.invariance import use_native, variant_operators
from outrider.engine.compile.linear import fuse_gates, pack
from outrider.engine.compile.wanted_rows import select_early

TOKENS_MAX = 1 << 17
"""Largest batch that a graph accepts, in tokens: more than the line tokens of one step and the trees of as many
sessions as a worker may have."""

TOKENS_MIN = 2
"""Smallest batch: the exporter takes a size of 1 for a constant. One token of padding costs a hundredth of a step."""

_EXAMPLE_TOKENS = 16
_NUMBERS_MIN = 8
"""Fewest integers that describe a batch of two tokens."""


class Exported(NamedTuple):
    """A model's graph."""

    program: ExportedProgram
    """Its inputs are token ids [N], positions [N], wanted rows [R] and the batch as `described` lists it; its output
    are the logits [R, V]."""
    variant_operators: list[str]
    """Names of the operators of which it is not known that a token's result depends on that token alone."""


class _Logits(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, positions: Tensor, rows: Tensor, batch: Tensor) -> Tensor:
        output = self.model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=rows,
            ragged_batch=batch,
        )
        return output.logits[0]


def export(model: PreTrainedModel) -> Exported:
    """The graph of `model`, whose linear layers and attention are native from now on; takes some seconds.

    The native operators are loaded. Raises UnsupportedModelError if the model cannot be exported.
    """
    model.set_attn_implementation(NATIVE_ATTENTION)
    pack(model)
    num_tokens = torch.export.Dim("num_tokens", min=TOKENS_MIN, max=TOKENS_MAX)
    num_rows = torch.export.Dim("num_rows", min=TOKENS_MIN, max=TOKENS_MAX)
    num_numbers = torch.export.Dim("num_numbers", min=_NUMBERS_MIN)
    lists = [torch.arange(_EXAMPLE_TOKENS) for _ in range(3)]  # three: of one tensor the exporter would make one input
    example: tuple[Any, ...] = (*lists, torch.zeros(5 * _EXAMPLE_TOKENS, dtype=torch.int64))
    try:
        with torch.no_grad():
            program = torch.export.export(
                _Logits(model).eval(),
                example,
                dynamic_shapes=({0: num_tokens}, {0: num_tokens}, {0: num_rows}, {0: num_numbers}),
            )
            select_early(program.graph)
            fuse_gates(program.graph)
            use_native(program.graph)
    except Exception as error:  # the exporter raises whatever it meets
        raise UnsupportedModelError(
            f"this model cannot be exported ({type(error).__name__}: {first_line(error)})"
        ) from error
    return Exported(program, variant_operators(program.graph))
