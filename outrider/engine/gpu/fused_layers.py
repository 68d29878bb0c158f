"""Decoders of known classes, layer by layer in ten launches: four products, two of attention, four of what is between.

Transformers' own modules take about sixty. Their weights stay where they are and are read from there; only products
that read the same input are made one. No GPU has run this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from outrider.engine.gpu import launch, layer_kernels
from outrider.engine.gpu.launch import DeviceWork
from outrider.engine.gpu.layer_kernels import Norm
from outrider.engine.kv_cache.tensors import KVCache

Product = Callable[[Tensor], Tensor]

Join = Callable[..., Product]
"""Of linear layers makes one product, which has the outputs of each, one after another."""

CLASSES: tuple[type[PreTrainedModel], ...] = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
"""Whose layers are a norm, rotary attention, a norm and a gated product, each with its residual. Of Qwen3 queries and
keys have norms, of Qwen2 the first products biases."""


class _Layer(NamedTuple):
    attention_norm: Norm
    attention_in: Product
    """Queries, keys and values."""
    head_norms: tuple[Norm, Norm] | None
    scale: float
    attention_out: Product
    mlp_norm: Norm
    mlp_in: Product
    """Gates, and what they are for."""
    mlp_out: Product


def problem(model: PreTrainedModel) -> str:
    """Why `model` cannot run fused, in words; empty if its class is known and nothing was put into it."""
    if type(model) not in CLASSES:
        return f"layers of {type(model).__name__} are not known"
    if model.config.hidden_act != "silu":
        return f"its layers are gated by {model.config.hidden_act}, not by silu"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "its modules have hooks"
    if any("forward" in vars(module) for module in model.modules()):
        return "its modules have a forward pass put over their own"
    if any(type(parameter) is not nn.Parameter for parameter in model.parameters()):
        return "its weights are divided, or of a type of their own"
    return ""


class FusedLayers:
    """A model's forward pass on these kernels."""

    def __init__(self, model: PreTrainedModel, join: Join) -> None:
        """`model` is one that `problem` says nothing of. `join` puts its weights in order; what it computes stays."""
        self._model: Any = model
        self._layers = [_layer(each, join) for each in self._model.model.layers]
        self._norm = _norm(self._model.model.norm)

    def logits(
        self,
        token_ids: Tensor,  # [N]
        positions: Tensor,  # [N]
        rows: Tensor,  # [R]
        work: DeviceWork,
        cache: KVCache,
        windows: Sequence[int],  # of each layer, by its index in the work list
    ) -> Tensor:
        """The logits of those rows, [R, V]."""
        decoder = self._model.model
        summed = decoder.embed_tokens(token_ids)  # [N, hidden size]
        cosine, sine = (each[0] for each in decoder.rotary_emb(summed[None], positions[None]))
        delta = None
        for layer, keys, values, window in zip(self._layers, cache.keys, cache.values, windows, strict=True):
            projected = layer.attention_in(layer_kernels.add_norm(summed, delta, layer.attention_norm))
            query = layer_kernels.rotate_and_write(projected, cosine, sine, layer.head_norms, keys, values, work)
            scoring = launch.Scoring(layer.scale, 0.0, None)
            attended = launch.attention(query.transpose(0, 1), keys, values, work, window, scoring)
            delta = layer.attention_out(attended.flatten(1))
            both = layer.mlp_in(layer_kernels.add_norm(summed, delta, layer.mlp_norm))
            delta = layer.mlp_out(layer_kernels.gated(both))
        normed = layer_kernels.add_norm(summed, delta, self._norm)
        return self._model.lm_head(normed.index_select(0, rows))


def _layer(layer: Any, join: Join) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    has_norms = hasattr(attention, "q_norm")
    return _Layer(
        attention_norm=_norm(layer.input_layernorm),
        attention_in=join(attention.q_proj, attention.k_proj, attention.v_proj),
        head_norms=(_norm(attention.q_norm), _norm(attention.k_norm)) if has_norms else None,
        scale=attention.scaling,
        attention_out=attention.o_proj,
        mlp_norm=_norm(layer.post_attention_layernorm),
        mlp_in=join(mlp.gate_proj, mlp.up_proj),
        mlp_out=mlp.down_proj,
    )


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), module.variance_epsilon)
