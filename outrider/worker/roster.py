"""The sessions of a worker that hold a slot, and the boundary that keeps one session's failure from the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import structlog
import torch

from outrider.core.errors import OutriderError, StepFailedError
from outrider.core.messages import DraftOpen, Opened, VerifyOpen
from outrider.engine.engine import Engine
from outrider.engine.sampling import Sampler
from outrider.engine.slots import Slot
from outrider.worker.outbox import Outbox


class Seated(Protocol):
    """What a worker's session brings along."""

    slot: Slot | None
    """None before it is admitted and after it is dismissed."""

    @property
    def opening(self) -> DraftOpen | VerifyOpen: ...

    @property
    def outbox(self) -> Outbox[Any]: ...


SessionT = TypeVar("SessionT", bound=Seated)


class Roster(Generic[SessionT]):
    """Engine, sampler and seated sessions of one worker. Device thread only, but for `len`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sampler = Sampler(engine.vocab_size, engine.max_sessions, engine.device)
        self.sessions: list[SessionT] = []
        self._log = structlog.get_logger()

    def __len__(self) -> int:
        return len(self.sessions)

    def admit(self, session: SessionT, now_ns: int) -> bool:
        """Gives the session a slot and tells its peer, or fails it. Whether it has one."""
        opening = session.opening
        try:
            session.slot = self.engine.acquire()
        except OutriderError as error:
            session.outbox.fail(error)
            return False
        prompt, output = opening.token_ids[: opening.num_prompt_tokens], opening.token_ids[opening.num_prompt_tokens :]
        self.sampler.open(session.slot.index, opening.sampling, prompt, output)
        self.sessions.append(session)
        session.outbox.put(Opened(len(opening.token_ids)), now_ns, now_ns)
        return True

    def dismiss(self, session: SessionT) -> None:
        """Frees the session's slot, if it still has one."""
        if session.slot is None:
            return
        self.sampler.close(session.slot.index)
        self.engine.release(session.slot)
        session.slot = None
        self.sessions.remove(session)

    def fail(self, session: SessionT, error: OutriderError) -> None:
        """Ends the session's stream with `error` and dismisses it."""
        session.outbox.fail(error)
        self.dismiss(session)

    def run(self, sessions: Sequence[SessionT], step: Callable[[Sequence[SessionT]], None]) -> None:
        """Runs one step for `sessions`. If it fails, runs it for each alone, and fails those that it fails for.

        Raises torch.AcceleratorError: then the device is beyond repair for this process.
        """
        try:
            step(sessions)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            if len(sessions) > 1:
                for session in sessions:
                    self.run([session], step)
                return
            self._log.error("step failed", session=sessions[0].opening.session_id, exc_info=error)
            self.fail(sessions[0], StepFailedError("the forward pass failed for this session; see the worker's log"))
