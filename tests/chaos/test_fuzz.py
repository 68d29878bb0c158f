"""Nonsense of every type to every RPC: a status each time, no slot lost, and a good request is answered after it."""

from __future__ import annotations

from .fuzzed import fuzzed_services

NUM_MESSAGES = 1500
NUM_BATCHES = 3

KNOWS_ITS_REQUESTS = {"/outrider.v1.GenerationService/GetTrace"}
"""Takes ids of requests that it remembers, and none that a message makes up."""


async def test_nonsense_gets_a_status_and_leaves_nothing_behind() -> None:
    async with fuzzed_services(1) as services:
        for _ in range(NUM_BATCHES):
            await services.batch(NUM_MESSAGES // NUM_BATCHES)
        statuses = services.fuzzer.statuses
    paths = {status.split()[0] for status in statuses} - KNOWS_ITS_REQUESTS
    assert len(paths) >= 12, "not every RPC was called"
    for path in paths:
        assert any(status.startswith(f"{path} ") and status.endswith((" OK", " CANCELLED")) for status in statuses), (
            f"{path} never took anything: {statuses}"
        )
