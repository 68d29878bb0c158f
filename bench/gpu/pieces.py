"""What parts of a step take by themselves: the choice of tokens, and queueing the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch

from bench.gpu.clock import Clock
from bench.gpu.floor import Row
from bench.gpu.plan import LINE_TOKENS_MIN
from bench.gpu.result import Piece
from bench.gpu.rounds import Rounds
from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.engine import Engine
from outrider.engine.sample.processor import Row as LogitsRow
from outrider.engine.sample.sampler import Sampler

CHOSEN_ROWS = (9, 144, 576)
"""Rows of logits of a step: 1, 16 and 64 sessions with nine tokens each."""

CHOICES = {
    "temperature 0.8": SamplingParams(temperature=0.8, seed=1),
    "temperature 0.8, top-p 0.9": SamplingParams(temperature=0.8, top_p=0.9, seed=1),
}

WEIGHTS_ALONE = Row(1, 1, LINE_TOKENS_MIN)
"""The step that reads its weights and does next to nothing else."""

LAUNCHED = Row(1, 9, LINE_TOKENS_MIN)
"""The step whose launches are timed."""


def bare(row: Row) -> Row:
    """The same step with next to no context."""
    return row._replace(num_context_tokens=LINE_TOKENS_MIN)


def of_choices(engine: Engine, clock: Clock, num_rounds: int) -> Iterator[Piece]:
    """The choice of tokens from logits that lie on the device, until the host knows them."""
    for about, params in CHOICES.items():
        sampler = Sampler(engine.vocab_size, 1, engine.device)
        sampler.open(0, params, [], [])
        for num_rows in CHOSEN_ROWS:
            logits = torch.randn(num_rows, engine.vocab_size, device=engine.device).to(engine.dtype)
            places = [LogitsRow(0, position) for position in range(num_rows)]
            ms = _median_ms(partial(sampler.choose, logits, places), clock, num_rounds)
            yield Piece(name=f"choice: {num_rows} rows, {about}", ms=ms)


def of_launches(engine: Engine, rounds: Rounds, clock: Clock, num_rounds: int) -> Iterator[Piece]:
    """A small step as it runs, and eagerly: all of it, and until the host has queued it. Afterwards it runs eagerly."""
    rounds.prepare(LAUNCHED)
    for is_eager in (False, True):
        if is_eager:
            engine.run_eagerly()
        rounds.forward(LAUNCHED)
        step_ms = _median_ms(lambda: rounds.forward(LAUNCHED), clock, num_rounds)
        queued_ms = [_queued_ms(rounds, clock) for _ in range(num_rounds)]
        name = f"launch, {'told to be eager' if is_eager else 'as served'} ({engine.path})"
        yield Piece(name=f"{name}: whole step", ms=step_ms)
        yield Piece(name=f"{name}: until it is queued", ms=median(queued_ms))


def _queued_ms(rounds: Rounds, clock: Clock) -> float:
    """By the host's clock, of a device that has nothing else to do."""
    before = clock.now()
    clock.ms(before, before)
    started = time.perf_counter()
    rounds.forward(LAUNCHED)
    return (time.perf_counter() - started) * 1e3


def _median_ms(run: Callable[[], object], clock: Clock, num_rounds: int) -> float:
    run()
    found: list[float] = []
    for _ in range(num_rounds):
        started = clock.now()
        run()
        found.append(clock.ms(started, clock.now()))
    return median(found)
