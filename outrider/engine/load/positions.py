"""Proof at start that beside its attention a token depends on its own position, not on its company's."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.load.probe import LayerInput, look, no_numbers, num_positions

_TOLERANCE = 1e-2
"""Largest difference relative to the largest number. The numbers compared come of equal sums, so that they should not
differ at all; what depends on something else differs by far more."""


def check_positions(model: PreTrainedModel) -> None:
    """Raises UnsupportedModelError if a layer's queries, keys, values or scores, or the logits, depend on the positions
    of other tokens of the batch, or on a token's place in it, or are no numbers.

    Rotary frequencies that change with the longest text are of the first kind: one session would change another's
    logits, and keys in the cache would be of two kinds. Of the second kind is whatever counts tokens instead of reading
    `position_ids`.
    """
    last = num_positions(model.config) - 1
    near = look(model, [0, 1, 2, 3])
    numbers = [each for layer in near.layers for each in (layer.query, layer.key, layer.value)]
    if any(each.isnan().any() for each in (*numbers, near.logits)):
        raise no_numbers(model)
    far = look(model, [0, 1, last - 1, last])
    later = look(model, [0, 1, last - 1, last], num_past=last - 3)
    for alone, in_company, after_others in zip(near.layers, far.layers, later.layers, strict=True):
        if not _alike(alone, in_company, slice(0, 2)):
            raise _changes(f"layers of class {type(alone.module).__name__}")
        if not _alike(in_company, after_others, slice(2, 4)):
            raise _counts(f"layers of class {type(alone.module).__name__}")
    if not _close(near.logits[:2].float(), far.logits[:2].float()):
        raise _changes("its logits")
    if not _close(far.logits[2:].float(), later.logits[2:].float()):
        raise _counts("parts of the model behind its last attention")


def _changes(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{what} change with the longest text of a batch, so that sessions would not be independent; serve the model "
        "with rotary positions that are fixed"
    )


def _counts(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{what} count tokens where they should read their positions, so that a text in a batch with others would be "
        "computed wrong; such models cannot be served"
    )


def _alike(one: LayerInput, other: LayerInput, tokens: slice) -> bool:
    pairs = [(one.query, other.query), (one.key, other.key), (one.value, other.value)]
    return all(one.arguments.get(name) == other.arguments.get(name) for name in ("scaling", "softcap")) and all(
        _close(each[:, :, tokens].float(), another[:, :, tokens].float()) for each, another in pairs
    )


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0.0, atol=_TOLERANCE * one.abs().max().item())
