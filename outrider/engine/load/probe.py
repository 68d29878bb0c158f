"""Looks at a model once, at start: what its layers hand to the attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from outrider.core.protocol.errors import UnsupportedModelError

_RECORDING = "outrider-recording"
_PROBE_TOKENS = 4
_UNDERSTOOD = {"scaling", "sliding_window", "softcap", "s_aux", "recorder"}
"""What the ragged attention honours."""
_WITHOUT_EFFECT = {"dropout", "position_ids", "use_cache", "is_causal"}
"""What cannot change the result of a causal forward pass in evaluation mode; `output_...` switches cannot either."""


class LayerFacts(NamedTuple):
    """What one layer needs of its cache and of its mask."""

    num_kv_heads: int
    key_size: int
    value_size: int
    window: int | None
    """Sliding window in tokens, the token itself included; None for full attention."""
    shapes_scores: bool
    """Whether the softmax is over more than scaled products: they are soft-capped, or there are sinks."""


def probe_layers(model: PreTrainedModel) -> list[LayerFacts]:
    """The facts of each layer in order, found by running a few tokens.

    Raises UnsupportedModelError if a layer does not use transformers' attention interface (state-space and recurrent
    layers do not), or hands it something that the ragged attention does not know.
    """
    text_config = model.config.get_text_config()
    found: dict[int, LayerFacts] = {}
    try:
        model.set_attn_implementation(_RECORDING)
        device = model.device
        token_ids = torch.zeros(1, _PROBE_TOKENS, dtype=torch.int64, device=device)
        positions = torch.arange(_PROBE_TOKENS, device=device)[None]
        with torch.inference_mode():
            model(input_ids=token_ids, position_ids=positions, use_cache=False, recorder=_Recorder(found))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UnsupportedModelError(
            f"models of type {text_config.model_type!r} cannot run on transformers' attention interface: {error}"
        ) from error
    finally:
        model.set_attn_implementation("eager")
    num_layers = text_config.num_hidden_layers
    if sorted(found) != list(range(num_layers)):
        raise UnsupportedModelError(
            f"{len(found)} of {num_layers} layers of this {text_config.model_type!r} model use transformers' attention "
            "interface; the others (state-space or recurrent layers, or attention of their own) cannot be served"
        )
    layer_types = getattr(text_config, "layer_types", None)
    facts = [found[layer] for layer in range(num_layers)]
    if layer_types is None:
        return facts
    return [
        fact._replace(window=text_config.sliding_window)
        if kind == "sliding_attention" and fact.window is None
        else fact
        for fact, kind in zip(facts, layer_types, strict=True)
    ]


class _Recorder:
    """Takes notes while the layers call the attention."""

    def __init__(self, found: dict[int, LayerFacts]) -> None:
        self._found = found

    def note(self, module: nn.Module, key: Tensor, value: Tensor, arguments: dict[str, Any]) -> None:
        given = {name for name, content in arguments.items() if content is not None and not name.startswith("output_")}
        unknown = given - _UNDERSTOOD - _WITHOUT_EFFECT
        if unknown or arguments.get("is_causal") is False or getattr(module, "is_causal", True) is False:
            reason = f"hand {sorted(unknown)} to their attention" if unknown else "attend to later tokens"
            raise UnsupportedModelError(
                f"layers of class {type(module).__name__} {reason}, which Outrider does not honour"
            )
        layer: int = module.layer_idx  # type: ignore[assignment]
        shapes_scores = bool(arguments.get("softcap")) or arguments.get("s_aux") is not None
        window = arguments.get("sliding_window")
        self._found[layer] = LayerFacts(key.shape[1], key.shape[3], value.shape[3], window, shapes_scores)


def _recording_attention(
    module: nn.Module,
    query: Tensor,  # [1, H, N, key_size]
    key: Tensor,  # [1, num_kv_heads, N, key_size]
    value: Tensor,  # [1, num_kv_heads, N, value_size]
    attention_mask: Tensor | None,
    *,
    recorder: _Recorder,
    **arguments: Any,
) -> tuple[Tensor, None]:
    recorder.note(module, key, value, arguments)
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


AttentionInterface.register(_RECORDING, _recording_attention)
