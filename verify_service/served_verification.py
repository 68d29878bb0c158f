"""A session at the verify service: its commands on their way to the device thread, and its span."""

from __future__ import annotations

import time
from functools import partial
from typing import Final, assert_never

from outrider.core.protocol.messages import (
    DraftWindow,
    EndDrafts,
    Opened,
    Verdict,
    VerifyCommand,
    VerifyFinished,
    VerifyOpen,
)
from outrider.engine.device_thread import DeviceThread
from outrider.telemetry import names
from outrider.worker.ledger import Column
from outrider.worker.outbox import Stamped
from outrider.worker.served_session import reopened
from outrider.worker.trace import SessionTrace
from verify_service.verifier import Verifier, VerifyEvent, VerifyStream

_ROUND: Final = (
    Column(each=names.STEPS_START_MS, is_count=False),
    Column(names.SESSION_STEP_MS, names.STEPS_DURATION_MS, is_count=False),
    Column(names.SESSION_WAIT_MS, is_count=False),
    Column(names.SESSION_NUM_TOKENS),
    Column(names.SESSION_NUM_DRAFT_TOKENS, names.STEPS_NUM_DRAFT_TOKENS),
    Column(names.SESSION_NUM_ACCEPTED, names.STEPS_NUM_ACCEPTED),
)


class ServedVerification:
    """See `ServedSession`."""

    def __init__(self, verifier: Verifier, device: DeviceThread, session: VerifyStream, trace: SessionTrace) -> None:
        """`session` has been handed to the `verifier`, which runs on the thread of `device`."""
        self._verifier = verifier
        self._device = device
        self._session = session
        self._trace = trace
        self._rounds = trace.ledger(_ROUND, names.SESSION_NUM_ROUNDS)

    def take(self, command: VerifyCommand) -> None:
        """See `ServedSession.take`."""
        match command:
            case DraftWindow() as window:
                self._device.submit(partial(self._verifier.graft, self._session, window, time.monotonic()))
            case EndDrafts():
                self.finish()
            case VerifyOpen():
                raise reopened()
            case _:
                assert_never(command)

    def finish(self) -> None:
        """See `ServedSession.finish`. It goes on without drafts."""
        self._device.submit(partial(self._verifier.end_drafts, self._session))

    def record(self, stamped: Stamped[VerifyEvent]) -> None:
        """See `ServedSession.record`."""
        trace = self._trace
        if not trace.is_recording:
            return
        match stamped.event:
            case Opened():
                trace.seated(stamped.ended_ns)
            case Verdict() as verdict:
                self._rounds.note(
                    trace.since_opening_ms(stamped.started_ns),
                    verdict.verify_ms,
                    verdict.wait_ms,
                    len(verdict.token_ids),
                    verdict.num_draft_tokens,
                    verdict.num_accepted,
                )
                if trace.records_steps:
                    attributes = {
                        names.ROUND_POSITION: verdict.position,
                        names.ROUND_NUM_DRAFT_TOKENS: verdict.num_draft_tokens,
                        names.ROUND_NUM_ACCEPTED: verdict.num_accepted,
                    }
                    trace.step(names.SPAN_VERIFY_STEP, stamped.started_ns, stamped.ended_ns, attributes)
            case VerifyFinished():
                pass

    def close(self, error: BaseException | None) -> None:
        """See `ServedSession.close`."""
        self._trace.end(error)
        self._device.submit_close(partial(self._verifier.close, self._session))
