"""Settings of the draft service."""

from __future__ import annotations

from pydantic import Field

from outrider.worker.config import WorkerConfig


class DraftConfig(WorkerConfig):
    """What the draft service is told."""

    listen: str = Field("127.0.0.1:50051", description=WorkerConfig.model_fields["listen"].description)
