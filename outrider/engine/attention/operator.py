"""The attention of all layers as one opaque operator, which finds its batch by the model's number.

It plugs into transformers' `AttentionInterface` under the name ATTENTION, so any decoder whose layers call that
interface runs on it unchanged, and a model compiles around it without a graph break.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from outrider.engine.attention.interface import ATTENTION, AttentionStep, LayerCall

_present: dict[int, AttentionStep] = {}


@contextmanager
def stepping(model: int, step: AttentionStep) -> Iterator[None]:
    """For the duration of one forward pass, the layers of the model with that number attend over `step`."""
    _present[model] = step
    try:
        yield
    finally:
        del _present[model]


@torch.library.custom_op("outrider::ragged_attention", mutates_args=())
def _opaque(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    model: int,
    layer: int,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """`AttentionStep.attend` as graph compilers see it, whichever batch it is.

    It looks the batch up by the model's number. Were the caches its arguments, a compiler would have to assume that
    anybody may see them change, and would copy them around every layer; see docs/decisions/0008-opaque-attention.md.
    """
    return _present[model].attend(query, key, value, LayerCall(layer, scale, softcap, sinks))


@_opaque.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape[1], query.shape[0], value.shape[-1])


def attend(query: Tensor, key: Tensor, value: Tensor, model: int, layer: LayerCall) -> Tensor:
    """`AttentionStep.attend` of the batch that the model with that number steps over; one operator for compilers."""
    if torch.compiler.is_compiling():
        return _opaque(query, key, value, model, *layer)
    return _present[model].attend(query, key, value, layer)


def register(name: str, operator: Callable[[Tensor, Tensor, Tensor, Any, LayerCall], Tensor]) -> None:
    """Makes `operator` the attention of transformers' models whose implementation is called `name`.

    It takes and returns what `AttentionStep.attend` does, and before the layer whatever tells it the batch: what the
    model was called with as `ragged_batch`. No mask is registered by that name: transformers then builds none, nor
    waits for the device to see where packed texts begin.
    """

    def attention(
        module: nn.Module,
        query: Tensor,  # [1, H, N, key_size]
        key: Tensor,  # [1, num_kv_heads, N, key_size]
        value: Tensor,  # [1, num_kv_heads, N, value_size]
        attention_mask: Tensor | None,
        *,
        ragged_batch: int | Tensor,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        scale = 1.0 / math.sqrt(query.shape[-1]) if scaling is None else scaling
        index: Any = module.layer_idx
        layer = LayerCall(index, scale, softcap or 0.0, s_aux)
        return operator(query[0], key[0], value[0], ragged_batch, layer)[None], None

    AttentionInterface.register(name, attention)


register(ATTENTION, attend)
