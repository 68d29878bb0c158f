"""Looks at a model once, at start: what its layers hand to the attention."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)

from outrider.core.protocol.errors import UnsupportedModelError
from outrider.engine.load.mask import ForeignMaskError, MaskFunction, sliding_window

_RECORDING = "outrider-recording"
_PROBE_TOKENS = 4
_POSITIONS_MAX = 1 << 24
"""Most positions that a model is looked at for. Rotary positions are exact in float32 up to there."""
_UNDERSTOOD = {"scaling", "softcap", "s_aux", "recorder"}
"""What the ragged attention honours."""
_WITHOUT_EFFECT = {"dropout", "position_ids", "use_cache", "is_causal", "sliding_window", "logits_to_keep"}
"""What cannot change the result of a causal forward pass in evaluation mode beside its mask; `output_...` switches
cannot either. A window is in the mask, whether or not it is told besides."""


class LayerFacts(NamedTuple):
    """What one layer needs of its cache and of its mask."""

    num_heads: int
    num_kv_heads: int
    key_size: int
    value_size: int
    window: int | None
    """Sliding window in tokens, the token itself included; None for full attention."""


class LayerInput(NamedTuple):
    """What one layer handed to its attention. N tokens."""

    module: nn.Module
    query: Tensor
    """[1, H, N, key_size]"""
    key: Tensor
    """[1, num_kv_heads, N, key_size]"""
    value: Tensor
    """[1, num_kv_heads, N, value_size]"""
    mask: Tensor | None
    arguments: Mapping[str, Any]


class Look(NamedTuple):
    """What a model does with a few tokens."""

    layers: list[LayerInput]
    """In order."""
    logits: Tensor
    """[N, V]"""


class _Past(DynamicCache):
    """Says that some tokens came before, and keeps nothing."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self._num_tokens = num_tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._num_tokens

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._num_tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, self._num_tokens

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states


def no_numbers(model: PreTrainedModel) -> UnsupportedModelError:
    """What is said of a model that computes nan."""
    dtype = str(model.dtype).removeprefix("torch.")
    return UnsupportedModelError(
        f"the model computes what is no number: its weights are damaged, or too large for {dtype}; download them "
        "again, or choose another --dtype"
    )


def num_positions(config: PreTrainedConfig) -> int:
    """How many positions the model of that configuration has, as far as they are looked at."""
    stated = getattr(config.get_text_config(), "max_position_embeddings", None) or _POSITIONS_MAX
    return min(max(stated, _PROBE_TOKENS), _POSITIONS_MAX)


def look(model: PreTrainedModel, positions: Sequence[int], *, num_past: int | None = None) -> Look:
    """What `model` does with as many tokens as there are `positions`, of which each attends to itself alone.

    With `num_past` it is told of a cache that holds so many tokens, as where transformers generates; without, of none,
    as the engine calls it. Raises UnsupportedModelError if a layer does not use transformers' attention interface once
    (state-space and recurrent layers do not).
    """
    text_config = model.config.get_text_config()
    found: list[LayerInput] = []
    device = model.device
    try:
        model.set_attn_implementation(_RECORDING)
        with torch.inference_mode():
            logits = model(
                input_ids=torch.zeros(1, len(positions), dtype=torch.int64, device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                logits_to_keep=len(positions),
                recorder=found,
                **{_cache_argument(model): None if num_past is None else _Past(num_past)},
            ).logits[0]
    except Exception as error:  # models raise whatever they meet
        raise UnsupportedModelError(
            f"models of type {text_config.model_type!r} cannot run on transformers' attention interface: {error}"
        ) from error
    finally:
        model.set_attn_implementation("eager")
    num_layers = text_config.num_hidden_layers
    layers: list[Any] = [each.module.layer_idx for each in found]
    if sorted(layers) != list(range(num_layers)):
        raise UnsupportedModelError(
            f"{len(set(layers))} of {num_layers} layers of this {text_config.model_type!r} model use transformers' "
            f"attention interface, in {len(layers)} calls, where each has to use it once; state-space or recurrent "
            "layers, attention of their own, or two attentions in one layer cannot be served"
        )
    return Look([found[layers.index(layer)] for layer in range(num_layers)], logits)


def _cache_argument(model: PreTrainedModel) -> str:
    """By which name `model` takes a cache: transformers has given it another."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def probe_layers(model: PreTrainedModel) -> list[LayerFacts]:
    """The facts of each layer in order, found by running a few tokens.

    Raises UnsupportedModelError as `look` does, or if a layer hands its attention something that the ragged
    attention does not know: an argument, or a mask that is neither causal nor a sliding window.
    """
    windows: dict[MaskFunction, int | None] = {}
    # Told of a cache, even of an empty one, transformers does not wait for the device to see where texts begin.
    layers = look(model, range(_PROBE_TOKENS), num_past=0).layers
    return [_facts(each, windows, num_positions(model.config)) for each in layers]


def _facts(layer: LayerInput, windows: dict[MaskFunction, int | None], limit: int) -> LayerFacts:
    """`windows` are those of the masks that are known already."""
    arguments = layer.arguments
    given = {name for name, content in arguments.items() if content is not None and not name.startswith("output_")}
    if unknown := given - _UNDERSTOOD - _WITHOUT_EFFECT:
        raise _unknown(layer, f"hand {sorted(unknown)} to their attention")
    if arguments.get("is_causal") is False or getattr(layer.module, "is_causal", True) is False:
        raise _unknown(layer, "attend to later tokens")
    mask: MaskFunction | None = getattr(layer.mask, "function", None)
    if mask is None:
        raise _unknown(layer, "make their masks themselves")
    if mask not in windows:
        try:
            windows[mask] = sliding_window(mask, limit)
        except ForeignMaskError as error:
            raise _unknown(layer, f"have a mask {error}") from error
    return LayerFacts(
        num_heads=layer.query.shape[1],
        num_kv_heads=layer.key.shape[1],
        key_size=layer.key.shape[3],
        value_size=layer.value.shape[3],
        window=windows[mask],
    )


def _unknown(layer: LayerInput, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"layers of class {type(layer.module).__name__} {reason}, which Outrider does not honour"
    )


def _recording_attention(
    module: nn.Module,
    query: Tensor,  # [1, H, N, key_size]
    key: Tensor,  # [1, num_kv_heads, N, key_size]
    value: Tensor,  # [1, num_kv_heads, N, value_size]
    attention_mask: Tensor | None,
    *,
    recorder: list[LayerInput],
    **arguments: Any,
) -> tuple[Tensor, None]:
    recorder.append(LayerInput(module, query, key, value, attention_mask, arguments))
    return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).transpose(1, 2).contiguous(), None


class _RecordedMask(Tensor):
    """A mask of zeros that knows by which function it would have been made."""

    function: MaskFunction


def _recorded_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: MaskFunction,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Tensor:
    mask = torch.zeros(batch_size, 1, q_length, kv_length, dtype=dtype, device=device).as_subclass(_RecordedMask)
    mask.function = mask_function
    return mask


AttentionInterface.register(_RECORDING, _recording_attention)
AttentionMaskInterface.register(_RECORDING, _recorded_mask)
