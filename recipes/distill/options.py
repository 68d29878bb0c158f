"""What a run is told, one flag for each field. No torch: the command line reads this."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Option

from recipes.demo_pair.recipe import Precision

BUNDLED_TARGET = Path(__file__).parents[2] / "models" / "target"

DEPTHS_MAX = 16
"""Deepest guess that is measured and trained: PARD's own checkpoints go to 12."""


class Loss(StrEnum):
    """What is made small between the target's next-token distribution p and the draft's q."""

    FORWARD_KL = "forward-kl"
    REVERSE_KL = "reverse-kl"
    TOTAL_VARIATION = "total-variation"
    FORWARD_KL_AND_MISSES = "forward-kl+tv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The flags of `outrider distill` that decide its result."""

    target: Annotated[
        Path,
        Option(help="Folder or hub name of the target. Default: the bundled one.", metavar="MODEL", show_default=False),
    ] = BUNDLED_TARGET
    draft: Annotated[
        Path | None,
        Option(
            help="The same of the draft model to begin with, of the target's vocabulary. Default: from nothing.",
            metavar="MODEL",
        ),
    ] = None
    text: Annotated[
        Path | None,
        Option(
            help="What the target's texts begin with: a .jsonl file of prompts, or any other file or folder of text. "
            "Default: the standard library of this Python.",
            metavar="FILE",
            exists=True,
        ),
    ] = None
    parallel: Annotated[
        bool, Option("--parallel", help="Also train mask tokens: one forward pass then guesses --depths tokens.")
    ] = False
    depths: Annotated[int, Option(help="How many tokens ahead are guessed.", min=1, max=DEPTHS_MAX)] = 4
    keep: Annotated[
        float,
        Option(help="Part of the mask tokens of a depth that the next depth keeps (conditional drop).", min=0.1, max=1),
    ] = 0.7
    loss: Annotated[
        Loss | None,
        Option(help="What training makes small. Default: total-variation from a given draft, else forward-kl+tv."),
    ] = None
    by_length: Annotated[
        bool, Option("--by-length", help="Weigh each guess by what it adds to the accepted length.")
    ] = False
    steps: Annotated[int, Option(help="Training steps.", min=1)] = 500
    batch: Annotated[int, Option(help="Texts of a step.", min=1)] = 16
    num_texts: Annotated[int, Option("--texts", help="Texts that the target writes to train on.", min=1)] = 1024
    held_out_texts: Annotated[int, Option(help="Texts that it writes to measure on.", min=1)] = 96
    prompt_tokens: Annotated[int, Option(help="Most tokens that a text begins with.", min=1)] = 128
    answer_tokens: Annotated[int, Option(help="Most tokens that the target writes behind them.", min=2)] = 128
    layers: Annotated[int, Option(help="Layers of a draft from nothing.", min=1)] = 3
    width: Annotated[int, Option(help="Width of a draft from nothing, a multiple of 64.", min=64)] = 256
    learning_rate: Annotated[
        float | None, Option(help="Peak. Default: 1e-3 from nothing, 3e-4 from a given draft.", min=0.0)
    ] = None
    precision: Annotated[Precision, Option(help="Arithmetic in training; float32 for devices without bfloat16.")] = (
        Precision.BFLOAT16
    )
    seed: Annotated[int, Option(help="Decides texts, their order, and what is dropped.", min=0)] = 0

    @property
    def divergence(self) -> Loss:
        """The loss that is meant: from a given draft the one that gained most (docs/experiments/distill.md); from
        nothing the bundled draft's, as where two distributions share nothing total variation has no slope."""
        return self.loss or (Loss.TOTAL_VARIATION if self.draft else Loss.FORWARD_KL_AND_MISSES)
