"""Settings of the draft service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from outrider.core.propose.ngram import NGRAM_MODEL
from outrider.worker.config import WorkerConfig


class DraftConfig(WorkerConfig):
    """What the draft service is told."""

    model: str = Field(
        description=f"{WorkerConfig.model_fields['model'].description}; {NGRAM_MODEL}: no model, guesses from what the "
        "text repeats"
    )
    ngram: Literal["on", "off"] = Field(
        "off",
        description="n-gram guesses, from what the text repeats, beside the draft model's: for draft steps that take "
        "long, or a verifier without its own",
    )
    listen: str = Field("127.0.0.1:50051", description=WorkerConfig.model_fields["listen"].description)
