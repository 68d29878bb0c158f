"""What the benchmarks under load are told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from bench.compare.result import OURS
from bench.flags import DelaysMs, Only, Temperatures, listed
from bench.load.objective import DEFAULT_OBJECTIVE, Objective
from bench.rivals.modes import choose_own_modes, choose_rival_of_target
from bench.stack.models import BUNDLED, Models
from outrider.cli.value import taken_by
from outrider.worker.config import check_kv_memory

PromptLengths = Annotated[tuple[int, ...], listed(int, "Tokens of a prompt: one of these, by chance.")]
OutputLengths = Annotated[tuple[int, ...], listed(int, "Tokens of an answer: one of these, by chance.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Everything that one measurement under load depends on, but for the machine."""

    models: Models = BUNDLED
    modes: Annotated[
        tuple[str, ...],
        listed(
            str,
            "What to compare; load is the target alone, ours, and padded speculation.",
            taken_by=choose_own_modes,
        ),
    ] = ("load",)
    concurrency: Annotated[
        tuple[int, ...],
        listed(int, "Numbers of clients that ask again when they are answered."),
    ] = (1, 4, 8, 16, 24)
    rates: Annotated[
        tuple[float, ...],
        listed(float, "Requests per second that come by themselves, such as 2,4,8; default: none."),
    ] = ()
    rate_seconds: Annotated[float, Option(help="How long those keep coming in one pass.", min=0.1)] = 8.0
    minutes: Annotated[
        float, Option(help="How long to measure, after start and warm-up; three passes are made at least.", min=0)
    ] = 4.5
    prompts: Annotated[
        Path | None, Option(help="Prompts, parted by lines of ---; default: bundled ones.", metavar="FILE", exists=True)
    ] = None
    prompt_lengths: PromptLengths = (32, 64, 128)
    output_lengths: OutputLengths = (32, 64)
    temperatures: Temperatures = (0.0,)
    long_prompt: Annotated[
        int,
        Option(
            help="Put each load on the modes once more, beside a client that asks one prompt of so many tokens after "
            "another, and compare times between tokens; 0: do not. Models are given positions enough.",
            min=0,
        ),
    ] = 0
    delays_ms: DelaysMs = (0.0,)
    objective: Objective = DEFAULT_OBJECTIVE
    kv_memory: Annotated[
        str | None, Option(help="Both workers' --kv-memory; default: theirs.", callback=taken_by(check_kv_memory))
    ] = None
    max_queue: Annotated[int | None, Option(help="The verifier's --max-queue; default: its own.", min=0)] = None


BLOCKS_MIN = 2
"""Fewest blocks of each mode: A B B A."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverSlowerOptions:
    """Everything that the table of what is never slower depends on."""

    models: Annotated[Models, Only(("target", "draft", "ngram_table", "dtype", "compile"))] = BUNDLED
    mlp_widths: Annotated[
        tuple[int, ...],
        listed(int, "Widths of the target's MLPs, one target after another; 0: as it is.", allows_0=True),
    ] = (0, 4096, 16384)
    temperatures: Temperatures = (0.0, 0.8)
    concurrency: Annotated[
        tuple[int, ...], listed(int, "Numbers of clients that ask again when they are answered.")
    ] = (1, 4, 16, 64)
    delays_ms: DelaysMs = (0.0, 1.0, 5.0, 20.0)
    long_prompt: Annotated[
        int,
        Option(
            help="Without a delay put each load on once more, beside a client that asks one prompt of so many tokens "
            "after another; 0: do not.",
            min=0,
        ),
    ] = 1024
    num_blocks: Annotated[int, Option("--blocks", help="Blocks of each mode at each load.", min=BLOCKS_MIN)] = 6
    mode: Annotated[
        str, Option(help="What is compared with the target alone.", callback=taken_by(choose_rival_of_target))
    ] = OURS


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakOptions:
    """Everything that one soak depends on."""

    models: Annotated[Models, Only(("target", "draft", "dtype", "compile"))] = BUNDLED
    minutes: Annotated[float, Option(help="How long.", min=0.05)] = 10.0
    num_clients: Annotated[
        int, Option("--clients", help="How many clients, each asking again when it is answered.", min=1)
    ] = 32
    prompt_lengths: PromptLengths = (16, 32, 64, 128)
    output_lengths: OutputLengths = (8, 16, 32)
    kv_memory: Annotated[
        str, Option(help="Both workers' --kv-memory, to be too little.", callback=taken_by(check_kv_memory))
    ] = "16MB"
    """Room for a quarter of so many clients at the bundled target."""
    max_queue: Annotated[int, Option(help="The verifier's --max-queue.", min=0)] = 8
    """Too few."""
