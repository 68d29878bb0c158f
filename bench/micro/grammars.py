"""What a grammar costs: time per token and acceptance with one and without, side by side, by the services themselves.

`python -m bench.micro.grammars` prints a table; `--json` prints one object with machine facts. Each prompt is asked of
all before the next one. `anything` is a grammar that allows every text: what it takes longer than `free` is what masks
cost, for both write the same. `schema` writes JSON, which is another text.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.compare.asking import CoordinatorSource
from bench.compare.measuring import order
from bench.compare.sample import Sample
from bench.prompts import load_prompts, tokenizer
from bench.rivals.modes import choose_modes
from bench.stack.models import Models
from bench.stack.preparing import prepared
from bench.stack.services import running
from outrider.cli.board import Board
from outrider.client import Grammar, GrammarKind, SamplingParams

_RECORD: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "kind": {"enum": ["function", "class", "module"]},
        "line": {"type": "integer", "minimum": 0},
        "arguments": {"type": "array", "items": {"type": "string"}},
        "documented": {"type": "boolean"},
    },
    "required": ["name", "kind", "line", "arguments", "documented"],
    "additionalProperties": False,
}
GRAMMARS: Final[Mapping[str, Grammar | None]] = {
    "free": None,
    "anything": Grammar(GrammarKind.REGEX, r"(.|\n)*"),
    "schema": Grammar(GrammarKind.JSON_SCHEMA, json.dumps({"type": "array", "items": _RECORD, "minItems": 100})),
}
_NUM_WARM_UPS = 2
"""Prompts before the first that counts."""

Samples = Mapping[tuple[str, str], list[Sample]]
"""By mode and grammar, in the order of the prompts."""


def main(
    num_prompts: Annotated[int, typer.Option(help="Prompts that count.")] = 12,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 96,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.8,
    compiled: Annotated[str, typer.Option("--compile", help="Compile the forward passes: auto, on or off.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measures the bundled pair and its target alone, with grammars and without."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        samples = runner.run(_measured(num_prompts, max_tokens, temperature, Models(compile=compiled)))
    rows = [_row(samples, mode, name) for mode, name in samples]
    if as_json:
        print(json.dumps({"temperature": temperature, "rows": rows, "machine": machine.facts()}))
        return
    table = Table(*rows[0], title=f"temperature {temperature:g}, {num_prompts} prompts: medians")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3f}" for value in row.values()))
    Console().print(table)


async def _measured(num_prompts: int, max_tokens: int, temperature: float, asked: Models) -> Samples:
    console = Console(stderr=True)
    modes = choose_modes(["target", "outrider"])
    models = prepared(asked, console)
    prompts = load_prompts(None, num_prompts + _NUM_WARM_UPS, tokenizer(Path(models.target)))
    samples: dict[tuple[str, str], list[Sample]] = {(mode.name, name): [] for mode in modes for name in GRAMMARS}
    with Board(console, show_logs=False).watching() as board:
        async with running(modes, models, board) as stack:
            sources = {mode.name: CoordinatorSource(stack.client(mode), speculate=mode.speculate) for mode in modes}
            board.settle()
            for index, prompt in enumerate(prompts):
                for each in order([f"{mode} {name}" for mode, name in samples], index):
                    mode, name = each.split()
                    sampling = SamplingParams(temperature=temperature, seed=index, grammar=GRAMMARS[name])
                    sample = await sources[mode].ask(prompt, sampling, max_tokens)
                    if index >= _NUM_WARM_UPS:
                        samples[mode, name].append(sample)
    return samples


def _row(samples: Samples, mode: str, name: str) -> dict[str, str | float]:
    ours, free = samples[mode, name], samples[mode, "free"]
    num_accepted = sum(each.num_accepted for sample in ours for each in sample.rounds)
    num_drafted = sum(each.num_draft_tokens for sample in ours for each in sample.rounds)
    return {
        "mode": mode,
        "grammar": name,
        "ms per token": statistics.median(each.decode_ms_per_token for each in ours),
        "by that of free": statistics.median(
            each.decode_ms_per_token / other.decode_ms_per_token for each, other in zip(ours, free, strict=True)
        ),
        "tokens per round": sum(each.num_tokens for each in ours) / sum(len(each.rounds) for each in ours),
        "acceptance": num_accepted / num_drafted if num_drafted else 0.0,
    }


if __name__ == "__main__":
    typer.run(main)
