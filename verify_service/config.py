"""Settings of the verify service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from outrider.worker.config import WorkerConfig

QUEUE_MAX = 4096
"""Longest queue that may be configured: as many as a few minutes' arrivals of a busy worker, at some 30 KiB for each
thousand tokens of prompt."""


class VerifyConfig(WorkerConfig):
    """What the verify service is told."""

    listen: str = Field("127.0.0.1:50052", description=WorkerConfig.model_fields["listen"].description)
    ngram: Literal["on", "off"] = Field(
        "on",
        description="n-gram guesses, from what the text repeats, below all that has arrived",
    )
    recent_answers: Literal["tenants", "all", "off"] = Field(
        "tenants",
        description="guesses from what recent answers said; tenants: from those to the same token, and none where "
        "coordinators have no tokens or share the prefix cache; all: besides, those to whoever has no token, from one "
        "another's",
    )
    max_queue: int = Field(
        256, ge=0, le=QUEUE_MAX, description="most sessions that wait for room; those beyond it are refused"
    )
