"""What one step of the engine takes, by its number of tokens: eager, compiled, and compiled on more threads, in turn.

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
"""Length of the line below which the steps are measured."""
NUM_ROUNDS = 40
"""Measured steps of each kind."""
NUM_TOKENS = (1, 2, 4, 8, 16)


def main(
    model: Annotated[Path, typer.Option(help="Model folder.")] = Path("models/target"),
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "bfloat16",
    threads: Annotated[str, typer.Option(help="Numbers of threads of the compiled pass, with commas.")] = "1",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measures eager steps of one model on one thread, and compiled ones."""
    eager, compiled = (load_engine(model, dtype, compiled=compiled) for compiled in (False, True))
    numbers = [int(number) for number in threads.split(",")]
    arms = {"eager": Arm(eager)} | {f"compiled, {number} threads": Arm(compiled, number) for number in numbers}
    medians = median_step_ms(arms, NUM_TOKENS)
    if as_json:
        print(json.dumps({"model": model.name, "dtype": dtype, "median_step_ms": medians, "machine": machine.facts()}))
        return
    table = Table(title=f"{model.name}, {dtype}: median ms per step, {CONTEXT_TOKENS} tokens of context")
    for heading in ("tokens", *arms):
        table.add_column(heading, justify="right")
    for num_tokens in NUM_TOKENS:
        table.add_row(str(num_tokens), *(f"{medians[name][num_tokens]:.3f}" for name in arms))
    Console().print(table)


class Arm(NamedTuple):
    """What is compared."""

    engine: Engine
    num_threads: int = 1


def median_step_ms(arms: Mapping[str, Arm], nums_tokens: Sequence[int]) -> dict[str, dict[int, float]]:
    """For each arm and number of tokens the median of NUM_ROUNDS steps, below a line of CONTEXT_TOKENS and more.

    The arms take turns, so that a drifting machine drifts for all.
    """
    begun = {engine: _begun(engine) for engine in {arm.engine for arm in arms.values()}}
    medians: dict[str, dict[int, float]] = {name: {} for name in arms}
    for num_tokens in nums_tokens:
        taken: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(NUM_ROUNDS):
            for name, (engine, num_threads) in arms.items():
                torch.set_num_threads(num_threads)
                taken[name].append(_step_ms(engine, *begun[engine], num_tokens))
        for name in arms:
            medians[name][num_tokens] = round(statistics.median(taken[name]), 3)
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


def _begun(engine: Engine) -> tuple[Slot, list[int]]:
    """A slot and the line that it has read."""
    slot = engine.acquire()
    line = [(13 * index) % engine.vocab_size for index in range(CONTEXT_TOKENS)]
    engine.step([Job(slot, line)])
    return slot, line


def _step_ms(engine: Engine, slot: Slot, line: list[int], num_tokens: int) -> float:
    """One verify step: the line's newest token and a chain of drafts below it."""
    line.append(len(line) % engine.vocab_size)
    num_drafts = num_tokens - 1
    parents = [LINE_END, *range(num_drafts - 1)][:num_drafts]
    token_ids = [(len(line) + index) % engine.vocab_size for index in range(num_drafts)]
    started = time.perf_counter()
    engine.step([Job(slot, line, parents, token_ids, range(LINE_END, num_drafts))])
    return (time.perf_counter() - started) * 1000.0


if __name__ == "__main__":
    typer.run(main)
