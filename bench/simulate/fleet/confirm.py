"""A small fleet on real services with forced steps, beside the same one on the virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from bench.compare.asking import CoordinatorSource
from bench.records import rounded
from bench.rivals.modes import OPEN_GATE, Mode, PolicyName
from bench.simulate.fleet.run import Fleet
from bench.simulate.fleet.settings import Durations, Settings, Shape
from bench.simulate.oracle import PROMPT, OracleText
from bench.stack.models import Models
from bench.stack.services import Pair, Setup, running
from outrider.cli.child import Observer
from outrider.client import GREEDY, GenerationClient
from outrider.core.protocol.validation import AUTOMATIC_WIDTH_MAX

CLIENTS = (1, 4, 12)
SEEDS = (0, 1, 2)
NUM_TOKENS = 120
ALPHA = 0.7

DURATIONS = Durations(verify_ms=60.0, verify_token_ms=0.0, draft_ms=15.0, draft_node_ms=0.0)
"""Far above what messages, Python and the bundled pair's own passes take on two cores."""

AGREEMENT = 0.15
"""Largest part by which services and virtual clock may differ."""

MODE = Mode(name="no_ngram", about="", coordinator=(OPEN_GATE,), policy=PolicyName("no_ngram"))


async def confirm(models: Models, observer: Observer) -> list[dict[str, Any]]:
    """Milliseconds per token of answers that run at a time, on services and on the virtual clock."""
    rows: list[dict[str, Any]] = []
    setup = Setup(worker_flags=(f"--max-sessions={max(CLIENTS)}",))
    async with running([MODE], models, observer, setup) as stack:
        for num_clients in CLIENTS:
            real = [await _ask(stack.pair(MODE), stack.client(MODE), num_clients, seed) for seed in SEEDS]
            virtual = [_virtual(num_clients, seed) for seed in SEEDS]
            row = {"num_clients": num_clients, "on_services": fmean(real), "on_virtual_clock": fmean(virtual)}
            rows.append(row | {"ratio": row["on_services"] / row["on_virtual_clock"]})
    return rounded(rows)


def agrees(row: Mapping[str, Any]) -> bool:
    """Whether services took as long as the virtual clock says, within AGREEMENT."""
    return abs(row["ratio"] - 1.0) <= AGREEMENT


async def _ask(pair: Pair, client: GenerationClient, num_clients: int, seed: int) -> float:
    forced = {"alpha": ALPHA, "num_positions": len(PROMPT) + NUM_TOKENS, "width": AUTOMATIC_WIDTH_MAX, "seed": seed}
    await pair.force(verify={**forced, "step_ms": DURATIONS.verify_ms}, draft={**forced, "step_ms": DURATIONS.draft_ms})
    await pair.choose(MODE)
    source = CoordinatorSource(client)
    samples = await asyncio.gather(*(source.ask(PROMPT, GREEDY, NUM_TOKENS) for _ in range(num_clients)))
    return fmean(sample.decode_ms_per_token for sample in samples)


def _virtual(num_clients: int, seed: int) -> float:
    shape = Shape(num_clients=num_clients)
    settings = Settings(shape=shape, durations=DURATIONS, adaptive=False, warm_up_seconds=0.0)
    fleet = Fleet(settings, lambda index: OracleText(ALPHA, NUM_TOKENS, width=AUTOMATIC_WIDTH_MAX, seed=seed))
    fleet.start()
    fleet.clock.run(lambda: len(fleet.ended) >= num_clients)
    return fmean(each.decode_seconds_per_token for each in fleet.ended[:num_clients]) * 1000.0
