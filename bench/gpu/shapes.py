"""Models of known shapes with random weights, made on their device: no checkpoint is needed to time steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen3Config

from bench.gpu.floor import Reads
from bench.gpu.options import ShapeName

WEIGHT_DEVIATION: Final = 0.02
"""Standard deviation of random weights, as models are initialised: logits stay finite."""


class Pair(NamedTuple):
    """Configurations of a target and of its draft."""

    target: PreTrainedConfig
    draft: PreTrainedConfig


_HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8}


def _llama(hidden: int, inner: int, layers: int, *, tied: bool, **more: int) -> PreTrainedConfig:
    shape: dict[str, Any] = {"vocab_size": 128256, "max_position_embeddings": 131072, **_HEADS, **more}
    sizes = _sizes(hidden, inner, layers)
    return LlamaConfig(**shape, **sizes, tie_word_embeddings=tied, architectures=["LlamaForCausalLM"])


def _qwen3(hidden: int, inner: int, layers: int, num_heads: int, *, tied: bool) -> PreTrainedConfig:
    shape: dict[str, Any] = {"vocab_size": 151936, "max_position_embeddings": 40960, "head_dim": 128, **_HEADS}
    sizes = {**_sizes(hidden, inner, layers), "num_attention_heads": num_heads}
    return Qwen3Config(**{**shape, **sizes}, tie_word_embeddings=tied, architectures=["Qwen3ForCausalLM"])


def _sizes(hidden: int, inner: int, layers: int) -> dict[str, Any]:
    return {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}


def _pairs() -> Mapping[ShapeName, Pair]:
    tiny = {"vocab_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {
        ShapeName.LLAMA: Pair(_llama(4096, 14336, 32, tied=False), _llama(2048, 8192, 16, tied=True)),
        ShapeName.QWEN3: Pair(_qwen3(4096, 12288, 36, 32, tied=False), _qwen3(2048, 6144, 28, 16, tied=True)),
        ShapeName.TINY: Pair(_llama(128, 256, 2, tied=False, **tiny), _llama(128, 128, 1, tied=True, **tiny)),
    }


def pair_of(shape: ShapeName) -> Pair:
    """Llama 3.1 8B and 3.2 1B, Qwen3 8B and 1.7B by their configurations, or two that no machine notices."""
    return _pairs()[shape]


def skeleton(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model of that configuration without memory."""
    with torch.device("meta"):
        made: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="eager", trust_remote_code=False
        )
    return made.eval().requires_grad_(False)


def filled(model: PreTrainedModel, device: torch.device, seed: int) -> PreTrainedModel:
    """A `skeleton` with random weights on `device`, the same for the same seed, device and torch.

    They are made there one after another, and nowhere else.
    """
    model.to_empty(device=device)
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(seed)
    for weight in _weights(model):
        if weight.dim() == 1:  # of a norm
            weight.fill_(1.0)
        else:
            weight.normal_(std=WEIGHT_DEVIATION, generator=generator)
    decoder: Any = model.base_model
    with device:  # frequencies are computed, not stored
        decoder.rotary_emb = type(decoder.rotary_emb)(config=model.config)
    return model


def reads_of(model: PreTrainedModel, kv_bytes_per_token: int) -> Reads:
    """What a step over `model` has to read and to multiply."""
    embedding: Any = model.get_input_embeddings()
    table = 0 if model.config.tie_word_embeddings else embedding.weight.numel()
    num_weights = sum(weight.numel() for weight in _weights(model)) - table
    return Reads(num_weights * model.dtype.itemsize, num_weights, kv_bytes_per_token)


def num_bytes(model: PreTrainedModel) -> int:
    """Of all weights."""
    return sum(weight.nbytes for weight in _weights(model))


def _weights(model: PreTrainedModel) -> Iterator[Tensor]:
    """Each once, tied ones too."""
    yield from model.parameters()
