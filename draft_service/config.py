"""Settings of the draft service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from outrider.core.estimate.foresight import POSITIONS_AUTO, POSITIONS_MAX
from outrider.core.propose.ngram import NGRAM_MODEL
from outrider.settings import Problem
from outrider.worker.config import WorkerConfig

AUTO, OFF = "auto", "off"
"""Values of `parallel` that are no number."""


class DraftConfig(WorkerConfig):
    """What the draft service is told."""

    drafts: ClassVar[bool] = True

    model: str = Field(
        description=f"{WorkerConfig.model_fields['model'].description}; {NGRAM_MODEL}: no model, guesses from what the "
        "text repeats"
    )
    ngram_table: str = Field(
        "", description=f"{WorkerConfig.model_fields['ngram_table'].description}; with --model {NGRAM_MODEL} alone"
    )
    parallel: str = Field(
        AUTO,
        pattern=rf"^({AUTO}|{OFF}|{'|'.join(map(str, range(2, POSITIONS_MAX + 1)))})$",
        description=f"most places that one pass drafts below a token, from 2 to {POSITIONS_MAX}, by a parallel draft "
        f"model (PARD), whose config.json names its mask token; {AUTO}: {POSITIONS_AUTO} where it does; {OFF}: one "
        "place a pass",
    )
    listen: str = Field("127.0.0.1:50051", description=WorkerConfig.model_fields["listen"].description)

    def problems(self) -> Iterator[Problem]:
        """See `Settings`."""
        for setting, text in super().problems():
            if setting != "model":
                yield Problem(setting, text)
            elif self.model != NGRAM_MODEL:
                yield Problem(setting, f"{text}; or use {NGRAM_MODEL}, which needs no model")
