"""Whether a model's layers run fused on a device: they are tried at start, against the model's own modules."""

from __future__ import annotations

import torch
from torch import Tensor

from outrider.core.protocol.refusal import first_line
from outrider.engine.attention.interface import ModelFacts
from outrider.engine.attention.tree import TreeAttention
from outrider.engine.batch import PackedBatch, SessionSpan
from outrider.engine.compile.decoder import Decoder
from outrider.engine.gpu.work_list import PAGE_CELLS

_TOKENS = 5
"""Of the line that is tried: enough for positions and keys to tell tokens apart."""
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}
"""Largest difference of logits, relative to the largest logit, that rounding explains."""


def fused(decoder: Decoder) -> Decoder:
    """`decoder`, of whose model `fusion_problem` says nothing, on fused layers."""
    from outrider.engine.gpu.fused_layers import FusedLayers  # it wants Triton

    return decoder.fused(FusedLayers(decoder.model))


@torch.inference_mode()
def fusion_problem(decoder: Decoder, facts: ModelFacts) -> str:
    """Why the layers cannot run fused, in words; empty if they can, and compute what they do without.

    It writes to the first cells of the KV cache, which nobody holds yet.
    """
    if not isinstance(decoder.attention, TreeAttention):
        return f"they are for attention tree, and it is {decoder.attention.name}"
    from outrider.engine.gpu.fused_layers import problem  # it wants Triton

    if found := problem(decoder.model):
        return found
    if facts.device.type == "meta":  # nothing is computed there
        return ""
    expected = _tried(decoder)
    try:
        off = (_tried(fused(decoder)) - expected).abs().max() / expected.abs().max()
    except Exception as error:  # compilers, drivers and kernels raise whatever they meet
        return f"their kernels do not run here ({type(error).__name__}: {first_line(error)})"
    if not off.item() <= _TOLERANCE[facts.dtype]:
        return f"they compute something else than the model's own modules, by {off.item():.1%} of the largest logit"
    return ""


def _tried(decoder: Decoder) -> Tensor:
    """The logits after each token of a short line, [_TOKENS, V] float32."""
    cells = list(range(_TOKENS))
    batch = PackedBatch(
        token_ids=cells.copy(),
        positions=cells.copy(),
        write_cells=cells.copy(),
        limits=[cell + 1 for cell in cells],
        path_offsets=[0] * (_TOKENS + 1),
        sessions=[SessionSpan(0, _TOKENS, 0, _TOKENS)],
        blocks=[0],
        block_cells=PAGE_CELLS,
        rows=cells.copy(),
    )
    return decoder.run(batch, _TOKENS, _TOKENS).float()
