"""What `outrider bench load` and `outrider bench soak` are told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.load.answer import DEFAULT_OBJECTIVE, Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Everything that one measurement under load depends on, but for the machine."""

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
    modes: tuple[str, ...] = ("load",)
    concurrency: tuple[int, ...] = (1, 4, 8, 16, 24)
    """Numbers of clients, each of which asks again when it is answered."""
    rates: tuple[float, ...] = ()
    """Requests per second that come whether or not others are answered."""
    rate_seconds: float = 8.0
    """How long they keep coming in one pass."""
    minutes: float = 5.0
    """How long to measure, services' start and warm-up aside; a few passes are made in any case."""
    prompts: Path | None = None
    prompt_lengths: tuple[int, ...] = (32, 64, 128)
    output_lengths: tuple[int, ...] = (32, 64)
    temperatures: tuple[float, ...] = (0.0,)
    long_prompt: int = 0
    """Tokens of the prompts of one more client, beside which each load is measured too; 0: there is none."""
    objective: Objective = DEFAULT_OBJECTIVE
    kv_memory: str | None = None
    """Both workers' `--kv-memory`; None: their default."""
    max_queue: int | None = None
    """The verifier's `--max-queue`; None: its default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakOptions:
    """Everything that one soak depends on."""

    target: str
    draft: str
    dtype: str = "bfloat16"
    compile: str = "auto"
    minutes: float = 10.0
    num_clients: int = 32
    kv_memory: str = "16MB"
    """Too little for so many: room for a quarter of them at the bundled target."""
    max_queue: int = 8
    """Of the verifier, and too few."""
    prompt_lengths: tuple[int, ...] = (16, 32, 64, 128)
    output_lengths: tuple[int, ...] = (8, 16, 32)
