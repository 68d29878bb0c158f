"""What `outrider bench` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """Everything that one measurement depends on, but for the machine."""

    target: str
    draft: str
    ngram_table: str = ""
    """The verifier's `--ngram-table`; empty: none."""
    target_device: str = "cpu"
    draft_device: str = "cpu"
    dtype: str = "bfloat16"
    compile: str = "auto"
    wide: bool = False
    """Widen the target first."""
    modes: tuple[str, ...] = ("default",)
    prompts: Path | None = None
    num_prompts: int = 16
    num_warm_ups: int = 2
    max_tokens: int = 64
    temperatures: tuple[float, ...] = (0.0, 0.8)
    external_openai: str | None = None
    external_model: str | None = None
    external_grpc: str | None = None
