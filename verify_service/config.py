"""Settings of the verify service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from outrider.settings import Problem
from outrider.worker.config import WorkerConfig, no_model, place

QUEUE_MAX = 4096
"""Longest queue that may be configured: as many as a few minutes' arrivals of a busy worker, at some 30 KiB for each
thousand tokens of prompt."""


RANKS_MAX = 64
"""Most devices that a model may be divided over: no model that we know has more key-value heads."""


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
    tensor_parallel: int = Field(
        1,
        ge=1,
        le=RANKS_MAX,
        description="devices that the model is divided over, each with a part of the heads: the worker starts a "
        "process for each, or is one of those that torchrun has started",
    )

    draft_model: str = Field(
        "",
        description="draft model for this process, a folder or a hub name: it drafts for sessions without a draft "
        "service, in turn with the target, on the same device or cores; for a machine that has no second one; empty: "
        "none",
    )

    @property
    def num_ranks(self) -> int:
        """See `WorkerConfig`."""
        return self.tensor_parallel

    def _draft_problems(self) -> Iterator[Problem]:
        if not self.draft_model:
            return
        if self.tensor_parallel > 1:
            yield Problem("draft_model", "goes with one device; with --tensor-parallel start draft services")
        if text := no_model(self.draft_model):
            yield Problem("draft_model", text)

    def problems(self) -> Iterator[Problem]:
        """See `Settings`."""
        yield from super().problems()
        yield from self._draft_problems()
        if self.tensor_parallel == 1:
            return
        if ":" in self.device:
            yield Problem(
                "device", f"{self.device} is one device; with --tensor-parallel say cuda, and each rank takes its own"
            )
        try:
            found = place()
        except ValueError:
            yield Problem(
                "tensor_parallel", "RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE must be numbers, or unset"
            )
            return
        if found is not None and found.num_ranks != self.tensor_parallel:
            yield Problem(
                "tensor_parallel",
                f"torchrun has started {found.num_ranks} processes (WORLD_SIZE); say so many here, or unset RANK",
            )
