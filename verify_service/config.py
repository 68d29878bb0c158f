"""Settings of the verify service."""

from __future__ import annotations

from pydantic import Field

from outrider.worker.config import WorkerConfig


class VerifyConfig(WorkerConfig):
    """What the verify service is told."""

    listen: str = Field("127.0.0.1:50052", description=WorkerConfig.model_fields["listen"].description)
