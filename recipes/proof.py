"""Proof of a model that a recipe writes: its logits are its original's, both as a worker loads them but in float32."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from outrider.engine.load.folder import load_model

TOLERANCE = 1e-5
"""Largest difference of logits, relative to the largest logit: a longer row, or a head of another size, is summed in
another order maybe, which moves a sum by a few units of 2**-24 = 6e-8 of it."""

_NUM_TOKENS = 64


def text(vocab_size: int) -> Tensor:
    """[N]: the text on which logits are compared, of tokens below `vocab_size`; always the same."""
    return torch.randint(vocab_size, (_NUM_TOKENS,), generator=torch.Generator().manual_seed(0))


def loaded(folder: Path) -> PreTrainedModel:
    """Raises UnsupportedModelError."""
    return load_model(folder, device=torch.device("cpu"), dtype="float32")


@torch.inference_mode()
def logits(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
    """[N, V]"""
    return model(input_ids=token_ids[None], use_cache=False).logits[0]


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest between logits [N, V] of two models, relative to the largest logit; NaN if one is."""
    return ((found - expected).abs().max() / expected.abs().max()).item()
