"""What `outrider bench gpu` is told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Option

from bench.flags import listed
from outrider.cli.value import taken_by
from outrider.worker.config import check_device


class ShapeName(StrEnum):
    """Shapes of target and draft."""

    LLAMA = "llama"
    QWEN3 = "qwen3"
    TINY = "tiny"


TINY = ShapeName.TINY
"""The shape that a CPU runs, too."""


class DtypeName(StrEnum):
    """Types of weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOptions:
    """Everything that the table of a device depends on, but for the machine."""

    device: Annotated[
        str,
        Option(
            help=f"cuda or cuda:1; or cpu, which tries the code with --shape {TINY}.",
            metavar="DEVICE",
            callback=taken_by(check_device),
        ),
    ] = "cuda"
    shape: Annotated[
        ShapeName, Option(help="Shapes of target and draft: llama (8B and 1B), qwen3 (8B and 1.7B) or tiny.")
    ] = ShapeName.LLAMA
    dtype: Annotated[DtypeName, Option(help="Of the weights.")] = DtypeName.BFLOAT16
    sessions: Annotated[tuple[int, ...], listed(int, "Numbers of sessions in a step.")] = (1, 16, 64)
    tokens: Annotated[
        tuple[int, ...], listed(int, "Tokens of each session in a verify step: its line's end and drafts.")
    ] = (1, 9, 32)
    draft_tokens: Annotated[tuple[int, ...], listed(int, "Tokens of each session in a draft step.")] = (1, 4)
    contexts: Annotated[tuple[int, ...], listed(int, "Tokens of each session before the step.")] = (2048, 16384)
    acceptance: Annotated[
        float, Option(help="How often a draft token is taken to be the target's: weights are random.", min=0.0, max=1.0)
    ] = 0.7
    num_rounds: Annotated[int, Option("--rounds", help="Measured steps of each row; the median counts.", min=1)] = 20
    seed: Annotated[int, Option(help="Of weights, texts and what is accepted.", min=0)] = 0
    rival_python: Annotated[
        Path | None,
        Option(help="A Python that has vLLM, to measure beside it; default: do not.", metavar="FILE", exists=True),
    ] = None
