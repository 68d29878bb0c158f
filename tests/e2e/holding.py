"""A target that can be held in the middle of a line, and what becomes of a session's drafter meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from outrider.core.coordinate.session import DrafterLost, Session
from outrider.core.protocol.messages import DraftWindow
from outrider.engine.engine import STEP_TOKENS_MAX, Engine, StepOutput
from outrider.engine.jobs import Job

HELD_TOKENS = 20
"""How long a line gets before the target waits."""


class HeldEngine(Engine):
    """Takes no step with a longer line while `go_on` is cleared."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        super().__init__(*arguments, **settings)

    def step(self, jobs: Sequence[Job], max_line_tokens: int = STEP_TOKENS_MAX) -> StepOutput:
        if any(len(job.line) > HELD_TOKENS for job in jobs):
            self.go_on.wait()
        return super().step(jobs, max_line_tokens)


class Watched:
    """What the sessions of this process's coordinators have seen of their drafters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.guessed = asyncio.Event()
        """Set when guesses have come."""
        self.lost = asyncio.Event()
        """Set when a drafter is known to be lost."""
        on_drafted, on_drafter_lost = Session.on_drafted, Session.on_drafter_lost

        def noting_guesses(session: Session, window: DraftWindow) -> DraftWindow | DrafterLost | None:
            self.guessed.set()
            return on_drafted(session, window)

        def noting_losses(session: Session, reason: str) -> DrafterLost | None:
            self.lost.set()
            return on_drafter_lost(session, reason)

        monkeypatch.setattr(Session, "on_drafted", noting_guesses)
        monkeypatch.setattr(Session, "on_drafter_lost", noting_losses)
