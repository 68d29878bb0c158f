"""Whether a model's layers run fused on a device: they are tried at start, against the model's own modules."""

from __future__ import annotations

import torch
from torch import Tensor

from outrider.engine.attention.interface import ModelFacts
from outrider.engine.attention.tree import TreeAttention
from outrider.engine.compile.decoder import Decoder
from outrider.engine.compile.joined import joined
from outrider.engine.gpu.trial import difference, small_step, trial

_LINE_TOKENS = 3
"""Of the step that is tried: enough for positions and keys to tell tokens apart."""
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}
"""Largest difference of logits, relative to the largest logit, that rounding explains."""


def fused(decoder: Decoder) -> Decoder:
    """`decoder`, of whose model `fusion_problem` says nothing, on fused layers."""
    from outrider.engine.gpu.fused_layers import FusedLayers  # it wants Triton

    return decoder.fused(FusedLayers(decoder.model, joined))


@torch.inference_mode()
def fusion_problem(decoder: Decoder, facts: ModelFacts) -> str:
    """Why the layers cannot run fused, in words; empty if they can, and compute what they do without.

    It writes to the first blocks of the KV cache, which nobody holds yet.
    """
    if not isinstance(decoder.attention, TreeAttention):
        return f"they are for attention tree, and it is {decoder.attention.name}"
    from outrider.engine.gpu.fused_layers import problem  # it wants Triton

    if found := problem(decoder.model):
        return found
    if facts.device.type == "meta":  # nothing is computed there
        return ""
    expected = _logits(decoder)
    return trial(lambda: difference(_logits(fused(decoder)), expected), _TOLERANCE[facts.dtype])


def _logits(decoder: Decoder) -> Tensor:
    """What a model computes at first, [N, V]."""
    batch = small_step(0, _LINE_TOKENS)
    num_tokens = len(batch.token_ids)
    return decoder.run(batch, num_tokens, num_tokens)
