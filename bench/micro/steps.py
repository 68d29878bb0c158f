"""What one step of the engine takes, by context and number of tokens: eager, compiled, and on more threads, in turn.

`python -m bench.micro.steps --model models/target` prints a table; `--json` prints one object with machine facts.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench import machine
from outrider.engine.engine import Engine
from outrider.engine.jobs import LINE_END, Job
from outrider.engine.kv_cache.slots import Slot
from outrider.worker.compilation import compile_package
from outrider.worker.config import WorkerConfig
from outrider.worker.startup import load

CONTEXT_TOKENS = 128
"""Length of the line below which steps are measured, unless another is asked for."""
NUM_ROUNDS = 40
"""Measured steps of each kind."""
NUM_TOKENS = (1, 2, 4, 8, 16)


def main(
    model: Annotated[Path, typer.Option(help="Model folder.")] = Path("models/target"),
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "bfloat16",
    threads: Annotated[str, typer.Option(help="Numbers of threads of the compiled pass, with commas.")] = "1",
    context: Annotated[str, typer.Option(help="Lengths of the line, with commas.")] = str(CONTEXT_TOKENS),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measures eager steps of one model on one thread, and compiled ones."""
    eager, compiled = (load_engine(model, dtype, compiled=compiled) for compiled in (False, True))
    nums_threads, contexts = ([int(number) for number in numbers.split(",")] for numbers in (threads, context))
    arms = {"eager": Arm(eager)} | {f"compiled, {number} threads": Arm(compiled, number) for number in nums_threads}
    medians = {num: median_step_ms(arms, NUM_TOKENS, num) for num in contexts}
    if as_json:
        print(json.dumps({"model": model.name, "dtype": dtype, "median_step_ms": medians, "machine": machine.facts()}))
        return
    table = Table(title=f"{model.name}, {dtype}: median ms per step")
    for heading in ("context", "tokens", *arms):
        table.add_column(heading, justify="right")
    for num_context, found in medians.items():
        for num_tokens in NUM_TOKENS:
            table.add_row(str(num_context), str(num_tokens), *(f"{found[name][num_tokens]:.3f}" for name in arms))
    Console().print(table)


class Arm(NamedTuple):
    """What is compared."""

    engine: Engine
    num_threads: int = 1


def median_step_ms(
    arms: Mapping[str, Arm], nums_tokens: Sequence[int], num_context: int = CONTEXT_TOKENS
) -> dict[str, dict[int, float]]:
    """For each arm and number of tokens the median of NUM_ROUNDS steps, below a line of that many tokens.

    The arms take turns, so that a drifting machine drifts for all.
    """
    begun = {engine: _begun(engine, num_context) for engine in {arm.engine for arm in arms.values()}}
    medians: dict[str, dict[int, float]] = {name: {} for name in arms}
    for num_tokens in nums_tokens:
        taken: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(NUM_ROUNDS):
            for name, (engine, num_threads) in arms.items():
                torch.set_num_threads(num_threads)
                taken[name].append(_step_ms(engine, *begun[engine], num_tokens))
        for name in arms:
            medians[name][num_tokens] = round(statistics.median(taken[name]), 3)
    for engine, (slot, _) in begun.items():
        engine.release(slot)
    return medians


def load_engine(
    folder: Path,
    dtype: str,
    *,
    compiled: bool,
    max_sessions: int = 1,
    kind: type[WorkerConfig] = WorkerConfig,
    weights: str = "auto",
) -> Engine:
    """An engine as a worker of that kind loads it, on one thread; compiled now if that was never done."""
    settings = {"compile": "on" if compiled else "off", "num_threads": 1, "max_sessions": max_sessions}
    models = {"model": str(folder), "dtype": dtype, "weights": weights}
    config = kind.model_validate({**models, "listen": "", **settings})
    loaded = load(config)
    if loaded.package is not None:
        asyncio.run(
            compile_package(loaded.package, loaded.folder, loaded.info.dtype, loaded.info.weights, background=False)
        )
        loaded = load(config)
    return loaded.engine


def _begun(engine: Engine, num_context: int) -> tuple[Slot, list[int]]:
    """A slot and the line that it has read."""
    slot = engine.acquire()
    line = [(13 * index) % engine.vocab_size for index in range(num_context)]
    engine.step([Job(slot, line)], max_line_tokens=num_context)
    return slot, line


def _step_ms(engine: Engine, slot: Slot, line: list[int], num_tokens: int) -> float:
    """One verify step: the line's last token, read anew, and a chain of drafts below it."""
    num_drafts = num_tokens - 1
    parents = [LINE_END, *range(num_drafts - 1)][:num_drafts]
    token_ids = [(len(line) + index) % engine.vocab_size for index in range(num_drafts)]
    started = time.perf_counter()
    engine.step([Job(slot, line, parents, token_ids, range(LINE_END, num_drafts))])
    return (time.perf_counter() - started) * 1000.0


if __name__ == "__main__":
    typer.run(main)
