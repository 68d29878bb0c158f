"""What `outrider bench` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from bench.flags import DelaysMs, Temperatures, listed
from bench.rivals.modes import choose_modes
from bench.rivals.openai_source import completions_url
from bench.rivals.options import NO_RIVALS, RivalOptions
from bench.stack.models import BUNDLED, Models
from outrider.cli.address import checked_address
from outrider.cli.value import taken_by


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """Everything that one measurement depends on, but for the machine."""

    models: Models = BUNDLED
    modes: Annotated[
        tuple[str, ...],
        listed(
            str,
            "What to compare: names of modes, of families of them, default, ablations, all.",
            taken_by=choose_modes,
        ),
    ] = ("default",)
    prompts: Annotated[
        Path | None, Option(help="Prompts, parted by lines of ---; default: bundled ones.", metavar="FILE", exists=True)
    ] = None
    num_prompts: Annotated[int, Option(help="Prompts to measure.", min=2)] = 16
    num_warm_ups: Annotated[int, Option("--warm-ups", help="Prompts before those that count.", min=1)] = 2
    max_tokens: Annotated[int, Option(help="Tokens of each answer.", min=2)] = 64
    temperatures: Temperatures = (0.0, 0.8)
    delays_ms: DelaysMs = (0.0,)
    rivals: RivalOptions = NO_RIVALS
    external_openai: Annotated[
        str | None,
        Option(help="An OpenAI-compatible server to measure too.", metavar="URL", callback=taken_by(completions_url)),
    ] = None
    external_model: Annotated[str | None, Option(help="What that server calls its model.")] = None
    external_grpc: Annotated[
        str | None, Option(help="Another coordinator to measure too.", metavar="HOST:PORT", callback=checked_address)
    ] = None
