"""The shape of a model: how many bytes a step reads of it, and of each token before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from outrider.core.protocol.errors import OutriderError

CONFIG_BYTES_MAX = 1 << 20
"""Longest config.json that is read: they have kilobytes."""


class UnknownShapeError(OutriderError):
    """A model whose shape is not known."""


class Shape(NamedTuple):
    """A dense decoder."""

    name: str
    num_parameters: float
    num_layers: int
    num_kv_heads: int
    head_size: int
    number_bytes: float = 2.0
    """Bytes of a weight: of a quantized folder, by the size of its files."""

    def weight_bytes(self, number_bytes: float) -> float:
        """With `number_bytes` for each parameter."""
        return self.num_parameters * number_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token, at 16 bits."""
        return 2 * 2 * self.num_layers * self.num_kv_heads * self.head_size


SHAPES: Final[Mapping[str, Shape]] = {
    each.name: each
    for each in (
        Shape("qwen3-0.6b", 0.596e9, 28, 8, 128),
        Shape("qwen3-1.7b", 1.72e9, 28, 8, 128),
        Shape("qwen3-4b", 4.02e9, 36, 8, 128),
        Shape("qwen3-8b", 8.19e9, 36, 8, 128),
        Shape("qwen3-14b", 14.8e9, 40, 8, 128),
        Shape("qwen3-32b", 32.8e9, 64, 8, 128),
        Shape("llama-3.2-1b", 1.24e9, 16, 8, 64),
        Shape("llama-3.2-3b", 3.21e9, 28, 8, 128),
        Shape("llama-3.1-8b", 8.03e9, 32, 8, 128),
        Shape("llama-3.1-70b", 70.6e9, 80, 8, 128),
        Shape("llama-3.1-405b", 405.9e9, 126, 8, 128),
        Shape("mistral-large-2", 122.6e9, 88, 8, 128),
    )
}
"""Published models that are often served, by the figures of their cards and configurations."""


def parse_shape(text: str) -> Shape:
    """A name of SHAPES, or a model folder. Raises UnknownShapeError."""
    if (known := SHAPES.get(text.lower().rpartition("/")[2])) is not None:
        return known
    config = Path(text) / "config.json"
    if not config.is_file():
        raise UnknownShapeError(
            f"the model {text!r} is not known; use one of {', '.join(SHAPES)}, or a folder with config.json"
        )
    try:
        if config.stat().st_size > CONFIG_BYTES_MAX:
            raise ValueError("it is too long")
        told = json.loads(config.read_bytes())
        shape = _shape_of(Path(text).name, told)
        num_bytes = sum(file.stat().st_size for file in config.parent.glob("*.safetensors"))
        if told.get("quantization_config") and num_bytes:
            shape = shape._replace(number_bytes=num_bytes / shape.num_parameters)
        return shape
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise UnknownShapeError(f"{config} does not tell the shape of a dense decoder ({error!r})") from error


def _shape_of(name: str, config: Mapping[str, Any]) -> Shape:
    """Counts the weights of a decoder with a gated perceptron: nearly all models have one."""
    config = config.get("text_config", config)
    if config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts"):
        raise ValueError("it is a mixture of experts, of which a step reads a part only")
    size, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head_size = int(config.get("head_dim") or size // heads)
    vocab, inner = int(config["vocab_size"]), int(config["intermediate_size"])
    if min(size, layers, heads, kv_heads, head_size, vocab, inner) < 1:
        raise ValueError("a size is not positive")
    attention = 2 * size * head_size * (heads + kv_heads)
    embeddings = vocab * size * (1 if config.get("tie_word_embeddings") else 2)
    return Shape(name, float(layers * (attention + 3 * size * inner) + embeddings), layers, kv_heads, head_size)
