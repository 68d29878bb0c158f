"""Speculation against the target alone, in pairs: the same prompt and seed, one after the other, on running services.

Start `outrider up`, then `python -m bench.pairs`. Each pair gives one ratio; the median of the ratios and its bootstrap
interval are what counts, since a machine's speed drifts from minute to minute but little from one request to the next.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import statistics
import textwrap
from typing import Annotated

import typer

from bench import machine
from outrider.client import Finished, GenerationClient, Token, Tokens
from outrider.core.sampling import SamplingParams

NUM_RESAMPLES = 2000
"""Resamples behind a bootstrap interval (Efron 1979), percentile method."""


def main(
    address: Annotated[str, typer.Option(help="host:port of the coordinator.")] = "127.0.0.1:50050",
    num_prompts: Annotated[int, typer.Option(min=2, help="Pairs to measure.")] = 12,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    tree_width: Annotated[int | None, typer.Option(min=1, max=8, help="Children per node.")] = None,
) -> None:
    """Prints one JSON object: the ratio of times (above 1: speculation is faster), counts and machine facts."""
    print(json.dumps(asyncio.run(_measure(address, num_prompts, max_tokens, temperature, tree_width)), indent=1))


async def _measure(
    address: str, num_prompts: int, max_tokens: int, temperature: float, tree_width: int | None
) -> dict[str, object]:
    ratios: list[float] = []
    lengths: list[float] = []
    num_identical = 0
    async with GenerationClient(address) as client:
        for index, prompt in enumerate(_prompts(num_prompts)):
            sampling = SamplingParams(temperature=temperature, seed=index)
            answers = {}
            for speculate in (True, False) if index % 2 else (False, True):
                answers[speculate] = await _ask(client, prompt, sampling, max_tokens, speculate, tree_width)
            (together, finished), (alone, finished_alone) = answers[True], answers[False]
            num_identical += together == alone
            ratios.append(finished_alone.timings.total_ms / finished.timings.total_ms)
            lengths.append(finished.speculation.acceptance_length)
    return {
        "speed_up_median": round(statistics.median(ratios), 3),
        "speed_up_95": [round(bound, 3) for bound in _bootstrap(ratios)],
        "acceptance_length_mean": round(statistics.fmean(lengths), 3),
        "num_pairs": num_prompts,
        "num_identical": num_identical,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "machine": machine.facts(),
    }


async def _ask(
    client: GenerationClient,
    prompt: str,
    sampling: SamplingParams,
    max_tokens: int,
    speculate: bool,
    tree_width: int | None,
) -> tuple[list[int], Finished]:
    tokens: list[Token] = []
    event: object = None
    async for event in client.generate(
        prompt, sampling=sampling, max_tokens=max_tokens, ignore_eos=True, speculate=speculate, tree_width=tree_width
    ):
        if isinstance(event, Tokens):
            tokens.extend(event.tokens)
    assert isinstance(event, Finished)
    return [token.token_id for token in tokens], event


def _prompts(count: int) -> list[str]:
    """Beginnings of functions of the standard library, of about a hundred tokens."""
    modules = (textwrap, json, random, statistics, inspect)
    functions = [member for module in modules for _, member in inspect.getmembers(module, inspect.isfunction)]
    sources = [source for function in functions if len(source := inspect.getsource(function)) > 400]
    return [sources[index % len(sources)][: 300 + index] for index in range(count)]


def _bootstrap(ratios: list[float]) -> tuple[float, float]:
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(NUM_RESAMPLES))
    return medians[int(0.025 * NUM_RESAMPLES)], medians[int(0.975 * NUM_RESAMPLES)]


if __name__ == "__main__":
    typer.run(main)
