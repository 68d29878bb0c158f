"""Where the design stops scaling: fleets of one shape that grow, with few or many coordinators."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.columns import Column, number, share
from bench.records import rounded
from bench.simulate.fleet.run import FaultAt, Fleet
from bench.simulate.fleet.settings import Settings, Shape

SIZES = (1, 4, 16, 64, 128)
"""Verifiers of the fleets; each has as many drafters, and as many clients for each verifier."""

CLIENTS_PER_VERIFIER = 16

VERIFIERS_PER_COORDINATOR = (1, 4, 16)

FAULTS = ("none", "kill", "freeze", "drain")
"""What happens to one verifier of sixteen."""

FAULT_SHARE = 1 / 3
"""Of the time that counts, before it happens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One fleet and what became of it."""

    settings: Settings
    faults: Sequence[FaultAt] = ()

    def measure(self) -> dict[str, Any]:
        """What JSON can hold."""
        fleet = Fleet(self.settings)
        fleet.run(self.faults)
        return rounded({"shape": asdict(self.settings.shape), "faults": [*map(asdict, self.faults)], **fleet.result()})


def sizes(settings: Settings, largest: int) -> Iterator[Run]:
    """Fleets of up to `largest` verifiers, first with the targets alone."""
    for size, ratio in itertools.product(SIZES, (None, *VERIFIERS_PER_COORDINATOR)):
        if size <= largest and (ratio is None or ratio <= size):
            shape = Shape(
                num_verifiers=size,
                num_drafters=size if ratio is not None else 0,
                num_coordinators=size // (ratio or 1),
                num_clients=size * CLIENTS_PER_VERIFIER,
            )
            yield Run(settings=replace(settings, shape=shape))


def faults(settings: Settings) -> Iterator[Run]:
    """A fleet of sixteen of each, of which a verifier dies, freezes or drains."""
    shape = Shape(
        num_verifiers=16, num_drafters=16, num_coordinators=16, num_clients=16 * CLIENTS_PER_VERIFIER, max_sessions=64
    )
    seconds = settings.warm_up_seconds + settings.seconds * FAULT_SHARE
    for fault in FAULTS:
        struck = () if fault == "none" else (FaultAt(seconds=seconds, worker="verify-0", fault=fault),)
        yield Run(settings=replace(settings, shape=shape), faults=struck)


def measure(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """All of them, on all cores, the longest first."""
    spawned = multiprocessing.get_context("spawn")  # a fork of a process that runs gRPC's threads may die at once
    order = sorted(range(len(runs)), key=lambda index: -runs[index].settings.shape.num_clients)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawned) as pool:
        measured = dict(zip(order, pool.map(Run.measure, [runs[index] for index in order]), strict=True))
    return [measured[index] for index in range(len(runs))]


COLUMNS: Sequence[Column[Mapping[str, Any]]] = (
    Column("C", lambda row: row["shape"]["num_coordinators"], title="coordinators"),
    Column("users", lambda row: row["shape"]["num_clients"], title="clients"),
    Column(
        "tok/s",
        lambda row: row["tokens_per_second"] / row["shape"]["num_verifiers"],
        number(0),
        title="tokens a second of each verifier",
    ),
    Column("round", lambda row: row["tokens_per_round"], number(2), title="tokens a round"),
    Column("ms", lambda row: row["ms_per_token"].get("p50"), number(1), title="ms per token, median"),
    Column("p99", lambda row: row["ms_per_token"].get("p99"), number(1), title="99th percentile"),
    Column("first", lambda row: row["first_token_ms"].get("p99"), number(0), title="first token, p99, ms"),
    Column("gap", lambda row: row["longest_gap_ms"], number(0), title="longest pause, ms"),
    Column(
        "sessions",
        lambda row: (row["sessions_per_verifier"]["min"], row["sessions_per_verifier"]["max"]),
        lambda pair: f"{pair[0]:.0f}-{pair[1]:.0f}",
        title="sessions of a verifier at the end",
    ),
    Column("V", lambda row: row["verifiers_busy"]["mean"], share, title="verifiers busy"),
    Column("D", lambda row: row["drafters_busy"].get("mean"), share, title="drafters busy"),
    Column("C busy", lambda row: row["coordinators_busy"]["max"], share, title="work of the busiest coordinator"),
)


def name(row: Mapping[str, Any]) -> str:
    """What a row is about."""
    shape = row["shape"]
    struck = "".join(f", one {fault['fault']}s" for fault in row["faults"])
    return f"{shape['num_verifiers']} + {shape['num_drafters']}{struck}"
