"""One generation at run time: a session at either worker, one session machine between them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Final, assert_never

from coordinator.drafter_relay import DrafterRelay
from coordinator.emission import Emission, EmittedTokens
from coordinator.gated_rounds import GatedRounds
from coordinator.links import Links, VerifierLink, Worker
from coordinator.request import GenerationRequest
from coordinator.stopwatch import Stopwatch
from coordinator.text import TextDecoder
from coordinator.verifier_failover import VERIFIER_GONE, VerifierFailover
from outrider.core.coordinate.drafter_state import DrafterState
from outrider.core.coordinate.events import Finished, GenerationMode, Timings, Usage
from outrider.core.coordinate.round import RoundReporter
from outrider.core.coordinate.session import Session
from outrider.core.coordinate.verdict_rules import VerdictRules
from outrider.core.estimate.speculation_gate import SpeculationGate
from outrider.core.protocol.ending import Ending
from outrider.core.protocol.errors import OutriderError, ProtocolViolationError, UntrustedWorkerError
from outrider.core.protocol.messages import (
    DraftOpen,
    DraftWindow,
    FinishReason,
    ModelInfo,
    Opened,
    TraceContext,
    Verdict,
    VerifyFinished,
    VerifyOpen,
)

SPARE_DRAFTERS = 3
"""How many times a session's drafter is replaced. Each one prefills the line anew, so one that keeps losing drafters is
better off without."""

_MODES: Final = {
    DrafterState.NONE: GenerationMode.TARGET_ONLY,
    DrafterState.MISSED: GenerationMode.TARGET_ONLY,
    DrafterState.ACTIVE: GenerationMode.SPECULATIVE,
    DrafterState.REPLACED: GenerationMode.SPECULATIVE,
    DrafterState.LOST: GenerationMode.DEGRADED,
    DrafterState.PAUSED: GenerationMode.TARGET_ONLY,
}


class Generation:
    """Runs one completion to its end. Iterate over `run()`; then read the results."""

    def __init__(
        self,
        request: GenerationRequest,
        *,
        session_id: str,
        target: ModelInfo,
        decoder: TextDecoder,
        links: Links,
        gate: SpeculationGate,
        max_run_ahead: int,
        trace: TraceContext,
        deadline: float | None = None,
    ) -> None:
        """`links` are the request's, shared by its completions, and `gate` is the coordinator's.

        `deadline` is the caller's, on the monotonic clock.
        """
        (received,) = request.received
        self._reporter: RoundReporter | None = None
        self._gated = GatedRounds(gate, greedy=request.sampling.greedy)
        self.session = Session(
            request.prompt_token_ids,
            received.token_ids,
            vocab_size=target.vocab_size,
            max_run_ahead=max_run_ahead,
            drafting=request.speculate,
            pause_reason=gate.reason,
            num_spare_drafters=SPARE_DRAFTERS,
        )
        self._num_cached_prompt_tokens = received.num_cached_prompt_tokens
        """None before the first verdict."""
        self._opening = VerifyOpen(
            session_id=session_id,
            token_ids=request.prompt_token_ids,
            num_prompt_tokens=len(request.prompt_token_ids),
            sampling=request.sampling,
            max_length=request.max_length,
            stop_token_ids=request.stop_token_ids,
            ignore_eos=request.ignore_eos,
            max_draft_tokens=request.max_draft_tokens if request.speculate else 0,
            num_logprobs=request.num_logprobs,
            prediction_token_ids=request.prediction_token_ids,
            trace=trace,
            cache_salt=request.cache_salt,
        )
        self._ending = Ending.of(self._opening, target.eos_token_ids)
        self._emission = Emission(decoder, received.token_ids, request.prediction_token_ids)
        self._rules = VerdictRules(
            self._ending, target.vocab_size, self._opening.max_draft_tokens, request.num_logprobs
        )
        self._stopwatch = Stopwatch(deadline)
        self._verifiers = VerifierFailover(links, session_id)
        draft_opening = DraftOpen(
            session_id=session_id,
            token_ids=request.prompt_token_ids,
            num_prompt_tokens=len(request.prompt_token_ids),
            sampling=request.sampling,
            max_run_ahead=max_run_ahead,
            tree_width=request.tree_width,
            max_length=request.max_length,
            vocab_size=target.vocab_size,
            trace=trace,
            cache_salt=request.cache_salt,
        )
        self._drafters = DrafterRelay(
            self.session,
            links,
            self._verifiers,
            draft_opening,
        )

    def report_by(self, reporter: RoundReporter) -> None:
        """The rounds are to come with reports. Call it before `run`."""
        self._reporter, stopwatch = reporter, self._stopwatch

        def on_window(drafter: Worker, window: DraftWindow) -> None:  # not a method: that would make a ring
            reporter.on_window(drafter.address, window, stopwatch.elapsed_ms())

        self._drafters.on_window = on_window

    @property
    def draft_model(self) -> str:
        """Name of the model that drafts, the latest one's if there were several; empty if there was none."""
        return self.session.own_draft_model if self.session.drafts_in_turn else self._drafters.model_name

    def finished(self, completion: int) -> Finished:
        """What the client is told when `run` has come to its end."""
        session, statistics, stopwatch = self.session, self.session.statistics, self._stopwatch
        if session.finish_reason is None:
            raise RuntimeError("run has not come to its end")
        was_fed = session.drafts_in_turn or (session.is_paused and statistics.num_drafted_nodes > 0)
        return Finished(
            reason=session.finish_reason,
            mode=GenerationMode.SPECULATIVE if was_fed else _MODES[session.drafter],
            mode_reason=session.mode_reason,
            text=self._emission.final_text,
            usage=Usage(
                session.line.num_prompt_tokens,
                self._emission.num_emitted,
                self._num_cached_prompt_tokens or 0,
                self._emission.num_predicted,
                len(self._opening.prediction_token_ids) - self._emission.num_predicted,
            ),
            speculation=statistics.speculation,
            timings=Timings(
                first_token_ms=stopwatch.first_token_ms,
                total_ms=stopwatch.total_ms,
                verify_ms=statistics.verify_ms,
                verify_wait_ms=statistics.verify_wait_ms,
                draft_ms=statistics.draft_ms,
            ),
            completion=completion,
        )

    async def run(self) -> AsyncGenerator[EmittedTokens]:
        """Yields the tokens of each round. Raises OutriderError if no verifier takes the session, or none is left."""
        if self._opening.max_draft_tokens:
            self._gated.begin()
        try:
            verifier = None if self._stop_if_decided() else self._verifiers.first(len(self.session.line))
            while verifier is not None:
                try:
                    with closing(verifier):
                        await self._open(verifier)
                        async for emitted in verifier.outcomes(partial(self._on_event, verifier)):
                            yield emitted
                    break
                except VERIFIER_GONE as error:
                    if isinstance(error, UntrustedWorkerError):
                        verifier.distrust(str(error))
                    self._verifiers.on_lost()
                    verifier = self._next_verifier(verifier, error)
            self._emission.finish()
        finally:
            self._stopwatch.stop()
            self._gated.end()
            self._drafters.close()
            self._verifiers.end()
            await self._drafters.end()

    async def _open(self, verifier: VerifierLink) -> None:
        """Opens the session at the verifier, at the end of the line, with everything that has been drafted."""
        session = self.session
        self._drafters.open(verifier.worker)
        opening = replace(
            self._opening,
            token_ids=tuple(session.line.token_ids),
            expect_drafts=session.hears_drafter,
            time_left_ms=self._stopwatch.time_left_ms(),
            report_scored=self._reporter is not None,
        )
        await verifier.room()
        verifier.offer(opening)
        drafted = session.on_verifier_changed(verifier.draft_model)
        if drafted is not None:
            verifier.offer(drafted)
        self._verifiers.set_ready(verifier)
        self._drafters.start()

    def _next_verifier(self, lost: VerifierLink, error: OutriderError) -> VerifierLink | None:
        """Where the session goes on when its verifier has refused it or is lost; None if it is over.

        Raises `error`, or an earlier refusal, if there is no other.
        """
        return None if self._stop_if_decided() else self._verifiers.next(lost, len(self.session.line), error)

    def _stop_if_decided(self) -> bool:
        """Ends the session if all is decided, and only the last word, why it ends, was lost. Returns whether it is."""
        line = self.session.line
        reason = self._ending.reason(line.token_ids[-1], len(line)) if line.num_generated_tokens else None
        if self._emission.stopped:
            reason = FinishReason.STOP_STRING
        if reason is not None:
            self._stop(reason)
        return reason is not None

    def _on_event(self, verifier: VerifierLink, event: Opened | Verdict | VerifyFinished) -> EmittedTokens | None:
        """Raises UntrustedWorkerError, before anything has changed, if the verifier says what cannot be."""
        if self.session.finish_reason is not None:
            return None
        try:
            emitted = self._emitted(event, verifier.worker)
        except ProtocolViolationError as violation:
            raise UntrustedWorkerError(f"the verify service broke the protocol: {violation}") from violation
        if emitted is not None:
            self._stopwatch.on_tokens()
            self._follow_gate(len(emitted.emit.token_ids))
        if self.session.finish_reason is not None:
            verifier.leave()
        return emitted

    def _emitted(self, event: Opened | Verdict | VerifyFinished, verifier: Worker) -> EmittedTokens | None:
        line = self.session.line
        match event:
            case Verdict():
                self._rules.check_verdict(event, line)
                return self._commit(event, verifier)
            case VerifyFinished(reason):
                self._rules.check_finished(reason, line)
                self._stop(reason)
            case Opened(num_line_tokens):
                self._rules.check_opened(num_line_tokens, line)
            case _:
                assert_never(event)
        return None

    def _commit(self, verdict: Verdict, verifier: Worker) -> EmittedTokens | None:
        line = self.session.line
        is_first = not line.num_generated_tokens
        if self._num_cached_prompt_tokens is None:
            self._num_cached_prompt_tokens = min(verdict.num_cached_tokens, line.num_prompt_tokens)
        reporter, came_ms = self._reporter, self._stopwatch.elapsed_ms()
        before = reporter.before(self.session, verdict) if reporter is not None else None
        outcome = self.session.on_verdict(verdict)
        if outcome is None:
            return None
        if outcome.commitment is not None:
            self._drafters.send(outcome.commitment)
        emitted = self._emission.on_emit(outcome.emit, self._num_cached_prompt_tokens if is_first else 0)
        if self._emission.stopped:
            self._stop(FinishReason.STOP_STRING)
        if reporter is not None and before is not None:
            report = reporter.after(self.session, before, outcome.emit, verifier.address, came_ms)
            emitted = replace(emitted, round=report)
        return emitted

    def _follow_gate(self, num_tokens: int) -> None:
        """After a round of `num_tokens`: pauses speculation, or resumes it, as the gate stands."""
        is_paused = self.session.is_paused
        is_gated = is_paused or self.session.hears_drafter
        self._gated.observe(num_tokens, is_gated=is_gated)
        if is_gated and self._gated.gate.is_open == is_paused:
            if is_paused:
                self._drafters.resume()
            else:
                self._drafters.pause(self._gated.gate.reason)

    def _stop(self, reason: FinishReason) -> None:
        self.session.on_stopped(reason)
        self._drafters.close()
