"""What a request's prediction saves: the target's own answers, edited at random, are predicted to it.

`python -m bench.compare.predictions` prints a table; `--json FILE` keeps the figures with facts of the machine. Each
prompt is asked with every kind of prediction in turn, with a drafter and without one.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from rich.console import Console
from tokenizers import Tokenizer

from bench import machine
from bench.columns import default_console, interval, new_table
from bench.compare.asking import CoordinatorSource
from bench.compare.measuring import order, sampling_of
from bench.compare.resampling import compare
from bench.compare.sample import Sample
from bench.prompts import load_prompts, tokenizer
from bench.rivals.modes import OPEN_GATE, Mode
from bench.stack.models import BUNDLED
from bench.stack.preparing import prepared
from bench.stack.services import Stack, running
from outrider.cli.board import Board

MODES: Final = (
    Mode(name="drafter", about="with a drafter", coordinator=(OPEN_GATE,)),
    Mode(name="alone", about="without one", coordinator=(OPEN_GATE, "--draft=")),
)

NONE: Final = "no prediction"
"""What the others are compared with."""

WORDS_SHARE: Final = 0.05
"""How many words are changed."""

LINES_MAX: Final = 3
"""Most lines of a block that is lost or put in."""

NUM_BLOCKS: Final = 2
"""Blocks of either kind."""

Sampled = dict[tuple[str, str], list[Sample]]
"""By mode and kind of prediction."""


class Asked(NamedTuple):
    """What is asked of the services."""

    num_prompts: int
    num_warm_ups: int
    max_tokens: int
    temperature: float


def main(
    num_prompts: Annotated[int, typer.Option(min=2, help="Prompts that count.")] = 12,
    num_warm_ups: Annotated[int, typer.Option("--warm-ups", min=1, help="Prompts before those.")] = 2,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 192,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    compiled: Annotated[str, typer.Option("--compile", help="Compile the workers' passes: auto, on or off.")] = "auto",
    out: Annotated[Path | None, typer.Option("--json", help="Where to write the figures as JSON, too.")] = None,
) -> None:
    """Measure what predictions save, prompt by prompt in turn, on the bundled pair."""
    console = Console(stderr=True)
    samples = asyncio.run(_run(console, compiled, Asked(num_prompts, num_warm_ups, max_tokens, temperature)))
    table = new_table(
        f"{num_prompts} answers of {max_tokens} tokens at temperature {temperature:g}",
        "tokens/step",
        "ms/token",
        "x without",
        "scored",
        "accepted",
    )
    found = [_figures(mode, kind, samples) for mode, kind in samples]
    for row in found:
        table.add_row(
            f"{row['mode']}, {row['prediction']}",
            f"{row['tokens_per_step']:.2f}",
            f"{row['ms_per_token']:.2f}",
            interval(row["ratio"][0], row["ratio"][1:]),
            f"{row['num_prediction_tokens']:.0f}",
            f"{row['num_accepted_prediction_tokens']:.0f}",
        )
    default_console().print(table)
    if out is not None:
        said = {"num_prompts": num_prompts, "max_tokens": max_tokens, "temperature": temperature, "compile": compiled}
        result = {"machine": machine.facts(), "settings": said, "rows": found}
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


async def _run(console: Console, compiled: str, asked: Asked) -> Sampled:
    models = prepared(replace(BUNDLED, compile=compiled), console)
    vocabulary = tokenizer(Path(models.target))
    with Board(console, show_logs=False).watching() as board:
        async with running(MODES, models, board) as stack:
            board.settle()
            return await _measure(stack, vocabulary, asked)


async def _measure(stack: Stack, vocabulary: Tokenizer, asked: Asked) -> Sampled:
    num_warm_ups, max_tokens, temperature = asked.num_warm_ups, asked.max_tokens, asked.temperature
    prompts = load_prompts(None, num_warm_ups + asked.num_prompts, vocabulary)
    samples: Sampled = {(mode.name, kind): [] for mode in MODES for kind in (NONE, *KINDS)}
    clients = {mode.name: stack.client(mode) for mode in MODES}
    useless = ""
    for index, prompt in enumerate(prompts):
        sampling = sampling_of(temperature, index)
        plain = await CoordinatorSource(clients["alone"], speculate=False).ask(prompt, sampling, max_tokens)
        answer = vocabulary.decode(plain.token_ids or ())
        dice = random.Random(index)
        predictions = {NONE: "", **{kind: edit(answer, useless, dice) for kind, edit in KINDS.items()}}
        names = [f"{mode}/{kind}" for mode, kind in samples]
        for name in order(names, index):
            mode, kind = name.split("/")
            source = CoordinatorSource(clients[mode], prediction=predictions[kind])
            sample = await source.ask(prompt, sampling, max_tokens)
            if sample.token_ids != plain.token_ids:
                raise RuntimeError(f"prompt {index}, {name}: other tokens than the target's own")
            if index >= num_warm_ups:
                samples[mode, kind].append(sample)
        useless = answer
    return samples


def _words(answer: str, _: str, dice: random.Random) -> str:
    """Some words become others of the text."""
    words = re.findall(r"\w+", answer)
    return re.sub(r"\w+", lambda found: dice.choice(words) if dice.random() < WORDS_SHARE else found.group(), answer)


def _blocks(answer: str, other: str, dice: random.Random) -> str:
    """Some lines are lost, and some of another text stand in between."""
    lines, others = answer.split("\n"), other.split("\n")
    for _ in range(NUM_BLOCKS):
        first = dice.randrange(len(lines))
        del lines[first : first + dice.randint(1, LINES_MAX)]
        first, place = dice.randrange(len(others)), dice.randrange(len(lines) + 1)
        lines[place:place] = others[first : first + dice.randint(1, LINES_MAX)]
    return "\n".join(lines)


KINDS: Final[Mapping[str, Callable[[str, str, random.Random], str]]] = {
    "the answer": lambda answer, other, dice: answer,
    "words changed": _words,
    "lines lost, put in": _blocks,
    "another answer": lambda answer, other, dice: other,
}
"""Predictions made of the answer and of another one."""


def _figures(mode: str, kind: str, samples: Sampled) -> dict[str, Any]:
    """What the answers to all prompts come to, beside those without a prediction."""
    ours, without = samples[mode, kind], samples[mode, NONE]
    ratio = compare([each.ms_per_token for each in ours], [each.ms_per_token for each in without]).ratio_of_sums
    return {
        "mode": mode,
        "prediction": kind,
        "tokens_per_step": sum(each.num_tokens for each in ours) / sum(len(each.rounds) for each in ours),
        "ms_per_token": sum(each.ms_per_token for each in ours) / len(ours),
        "ratio": [round(value, 3) for value in ratio],
        **{
            name: sum(each.statistics[name] for each in ours)
            for name in ("num_prediction_tokens", "num_accepted_prediction_tokens")
        },
    }


if __name__ == "__main__":
    typer.run(main)
