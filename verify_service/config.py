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
    max_queue: int = Field(
        256, ge=0, le=QUEUE_MAX, description="most sessions that wait for room; those beyond it are refused"
    )
