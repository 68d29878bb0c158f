"""`python -m bench.compare.hosts`: the drafter on another host, nearer and farther, against the target alone.

Beside it stand what theory expects of such a distance, and drafting in the verifier's own process, which has none.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import Progress
from typer import Option

from bench import machine
from bench.columns import default_console, in_terminal
from bench.compare.asking import CoordinatorSource, Source
from bench.compare.coverage import coverage
from bench.compare.hosts_result import (
    FAR,
    AtDelay,
    AtTemperature,
    Expected,
    Result,
    SpeedUp,
    Steps,
    columns,
    rows,
    title,
)
from bench.compare.measuring import Measured, measure, sources_of
from bench.compare.resampling import compare
from bench.compare.result import REFERENCE
from bench.compare.sample import Devices, Sample
from bench.flags import DelaysMs, Only, with_flags
from bench.prompts import load_prompts, tokenizer
from bench.records import as_json, from_json, rounded
from bench.rivals.modes import MODES, Mode
from bench.simulate.synthetic import SEEDS, Point
from bench.simulate.virtual import Speculation
from bench.stack.models import BUNDLED, Models, settings
from bench.stack.namespace import namespace
from bench.stack.preparing import prepared
from bench.stack.services import DEFAULT_SETUP, running
from outrider.cli.board import Board
from outrider.plan.theory import asynchronous, best_in_turn, roofline

HERE: Final = (REFERENCE, "colocated_2", "colocated_4", "colocated_8")
"""Modes without a drafter elsewhere. Of the lookaheads the best one counts."""

VIRTUAL_TOKENS: Final = 1000
"""Of each answer on the virtual clock, as on the map of the plane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostsOptions:
    """Everything that the measurement depends on, but for the machine."""

    models: Annotated[Models, Only(("target", "draft", "ngram_table", "dtype", "compile", "wide"))] = BUNDLED
    delays_ms: DelaysMs = (0.0, 1.0, 5.0, 10.0, 20.0)
    num_prompts: Annotated[int, Option(help="Prompts to measure.", min=2)] = 12
    num_warm_ups: Annotated[int, Option("--warm-ups", help="Prompts before those that count.", min=1)] = 2
    max_tokens: Annotated[int, Option(help="Tokens of each answer.", min=2)] = 64
    temperatures: Annotated[tuple[float, ...], Option("--temperature", help="May be repeated.", min=0.0)] = (0.0, 0.8)


@with_flags
def main(
    options: HostsOptions,
    out: Annotated[Path | None, Option("--json", help="Write the result to this file.", metavar="FILE")] = None,
    plots: Annotated[Path | None, Option(help="Write a plot to this folder, as PNG.", metavar="FOLDER")] = None,
) -> None:
    """Measure what distance costs: the drafter in a network namespace of its own, behind a wire that holds messages
    back. Wants Linux and root."""
    models = prepared(options.models, Console(stderr=True))
    prompts = load_prompts(None, options.num_prompts, tokenizer(Path(models.target)))
    measured, has_netem = asyncio.run(_run(options, models, prompts))
    found = [_at(temperature, measured, models, prompts) for temperature in options.temperatures]
    result = Result(
        machine=machine.facts(),
        settings=settings(options, models),
        held_back_by="netem" if has_netem else "relays",
        results=[from_json(AtTemperature, rounded(as_json(each))) for each in found],
    )
    for each in found:
        default_console().print(in_terminal(title(each), columns(each), rows(each)))
    if out is not None:
        out.write_text(json.dumps(as_json(result), indent=1) + "\n", encoding="utf-8")
    if plots is not None:
        from bench.compare.hosts_plot import plot

        plot(found, plots)


async def _run(
    options: HostsOptions, models: Models, prompts: Sequence[Sequence[int]]
) -> tuple[Sequence[Measured], bool]:
    """What was measured, and whether the kernel held messages back."""
    console = Console(stderr=True)
    far, here = ([MODES[name] for name in names] for names in (FAR, HERE))
    delays_ms = tuple(dict.fromkeys((0.0, *options.delays_ms)))
    with Board(console, show_logs=False).watching() as board:
        async with namespace() as other:
            setup = replace(DEFAULT_SETUP, delays_ms=delays_ms, draft_host=other)
            async with running([*far, *here], models, board, setup) as stack:

                def sources(delay_ms: float) -> Mapping[str, Source]:
                    def ask(mode: Mode) -> Source:
                        return CoordinatorSource(stack.client(mode, delay_ms), speculate=mode.speculate)

                    return sources_of(stack, far if delay_ms else [*far, *here], ask, delay_ms)

                board.settle()
                with Progress(console=console, transient=True) as progress:
                    asked = {delay_ms: sources(delay_ms) for delay_ms in delays_ms}
                    num_rounds = options.num_warm_ups + len(prompts) * len(options.temperatures)
                    task = progress.add_task("asking", total=num_rounds * sum(map(len, asked.values())))
                    measured = await measure(
                        asked,
                        prompts,
                        options.temperatures,
                        max_tokens=options.max_tokens,
                        num_warm_ups=options.num_warm_ups,
                        on_progress=lambda _: progress.advance(task),
                    )
    return measured, other.has_netem


def _at(
    temperature: float, measured: Sequence[Measured], models: Models, prompts: Sequence[Sequence[int]]
) -> AtTemperature:
    samples: dict[tuple[float, str], list[Sample]] = {}
    for each in measured:
        if each.condition.temperature == temperature:
            samples.setdefault((each.condition.delay_ms, each.mode), []).append(each.sample)
    target = samples[0.0, REFERENCE]

    def speed_ups(delay_ms: float, names: Sequence[str]) -> Mapping[str, SpeedUp]:
        return {name: _speed_up(target, samples[delay_ms, name]) for name in names}

    lines = [(prompt, sample.token_ids or ()) for prompt, sample in zip(prompts, target, strict=True)]
    alpha = coverage(Path(models.draft), models.dtype, lines, temperature)[0]
    target_ms = fmean(sample.decode_ms_per_token for sample in target)
    steps = _steps([sample.devices for sample in samples[0.0, "no_ngram"] if sample.devices is not None])
    return AtTemperature(
        temperature=temperature,
        alpha=alpha,
        target_ms=target_ms,
        steps=steps,
        roofline=target_ms / steps.verify_ms / roofline(alpha),
        here=speed_ups(0.0, [name for name in HERE if name != REFERENCE]),
        delays=[
            AtDelay(delay_ms, speed_ups(delay_ms, FAR), expected(alpha, steps, target_ms, delay_ms))
            for delay_ms in dict.fromkeys(delay_ms for delay_ms, _ in samples)
        ],
    )


def _speed_up(target: Sequence[Sample], own: Sequence[Sample]) -> SpeedUp:
    found = compare(*([sample.decode_ms_per_token for sample in each] for each in (target, own))).ratio_of_sums
    return SpeedUp(found.value, (found.low, found.high))


def _steps(devices: Sequence[Devices]) -> Steps:
    """Medians over answers, of which one step each reads the prompt."""
    return Steps(
        median(each.verify_step_ms + each.verify_outside_ms / each.num_verify_steps for each in devices),
        median(each.draft_step_ms + each.draft_outside_ms / each.num_draft_steps for each in devices),
    )


def expected(alpha: float, steps: Steps, target_ms: float, delay_ms: float) -> Expected:
    """What theory says of an acceptance, step times and a distance. Its unit is a verify step over a round's tokens,
    which takes longer than `target_ms`, a step over one."""
    draft_step, delay = steps.draft_ms / steps.verify_ms, delay_ms / steps.verify_ms
    point = Point(alpha=alpha, draft_step=draft_step, delay=delay)
    on_virtual_clock = fmean(
        point.run(Speculation(), None, num_tokens=VIRTUAL_TOKENS, seed=seed).time_per_token for seed in SEEDS
    )
    times = (asynchronous(alpha, draft_step, delay), on_virtual_clock, best_in_turn(alpha, draft_step, delay)[1])
    return Expected(*(target_ms / steps.verify_ms / time for time in times))


if __name__ == "__main__":
    typer.run(main)
