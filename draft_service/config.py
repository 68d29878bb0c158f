"""Settings of the draft service."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from outrider.core.propose.ngram import NGRAM_MODEL
from outrider.settings import Problem
from outrider.worker.config import WorkerConfig


class DraftConfig(WorkerConfig):
    """What the draft service is told."""

    model: str = Field(
        description=f"{WorkerConfig.model_fields['model'].description}; {NGRAM_MODEL}: no model, guesses from what the "
        "text repeats"
    )
    ngram_table: str = Field(
        "", description=f"{WorkerConfig.model_fields['ngram_table'].description}; with --model {NGRAM_MODEL} alone"
    )
    listen: str = Field("127.0.0.1:50051", description=WorkerConfig.model_fields["listen"].description)

    def problems(self) -> Iterator[Problem]:
        """See `Settings`."""
        for setting, text in super().problems():
            if setting != "model":
                yield Problem(setting, text)
            elif self.model != NGRAM_MODEL:
                yield Problem(setting, f"{text}; or use {NGRAM_MODEL}, which needs no model")
