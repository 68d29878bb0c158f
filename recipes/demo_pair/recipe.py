"""What decides the result of a run, the text and the device apart."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from outrider.core.protocol.errors import OutriderError


class RecipeError(OutriderError):
    """The run cannot start or go on; the text says what to do."""


class Precision(StrEnum):
    """Arithmetic of the forward pass in training. Weights and optimizer state are always float32."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of one model, and the peak of its learning rate."""

    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The defaults make the bundled pair's shapes from about as much text as it has seen."""

    target: Shape = Shape(num_layers=6, width=384, num_heads=6, mlp_width=1024, learning_rate=1e-3)
    draft: Shape = Shape(num_layers=3, width=256, num_heads=4, mlp_width=768, learning_rate=1.2e-3)
    target_tokens: int = 12_000_000
    draft_tokens: int = 17_000_000
    vocab_size: int = 4096
    window_tokens: int = 512
    batch_tokens: int = 4096
    written_batches: int = 160
    """Batches that the target writes for its draft, of `written_batch_windows` windows each."""
    written_batch_windows: int = 64
    written_window_tokens: int = 256
    num_held_out_files: int = 40
    checkpoint_steps: int = 50
    precision: Precision = Precision.BFLOAT16
    seed: int = 0
