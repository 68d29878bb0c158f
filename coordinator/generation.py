"""One generation at run time: two streams, one session machine between them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import structlog

from coordinator.drafter_link import DrafterLink
from coordinator.replica import Replica, Seat
from coordinator.request import GenerationRequest
from coordinator.route import Route
from coordinator.text import TextDecoder
from coordinator.verifier_link import VerifierLink
from outrider.core.coordinate.events import Finished, GenerationMode, Timings, Token, Tokens, Usage
from outrider.core.coordinate.session import (
    CloseDrafter,
    Command,
    DrafterState,
    Emit,
    Finish,
    OpenDrafter,
    SendToDrafter,
    SendToVerifier,
    Session,
)
from outrider.core.protocol.ending import Ending
from outrider.core.protocol.errors import OutriderError, QueueFullError, SlotsExhaustedError, WorkerUnavailableError
from outrider.core.protocol.messages import (
    DraftOpen,
    EndDrafts,
    FinishReason,
    ModelInfo,
    TraceContext,
    Verdict,
    VerifyFinished,
    VerifyOpen,
)

TIME_LEFT_MS_MAX = 2**32 - 1
"""Longest time until a deadline that a verifier is told: what the field holds, 49 days."""

SPARE_DRAFTERS = 3
"""How many times a session's drafter is replaced. Each one reads the line anew, so one that keeps losing drafters is
better off without."""

VERIFIERS_LOST_MAX = 3
"""How many verifiers a completion may lose and go on: a line that kills its verifier must not go through a pool."""

RELAY_END_SECONDS = 1.0
"""Longest that the relay is given to see that its streams are over: it takes a round of the event loop or two."""

_REFUSALS = (SlotsExhaustedError, QueueFullError)
"""What a verifier says that has no room."""

_MODES = {
    DrafterState.NONE: GenerationMode.TARGET_ONLY,
    DrafterState.MISSED: GenerationMode.TARGET_ONLY,
    DrafterState.ACTIVE: GenerationMode.SPECULATIVE,
    DrafterState.LOST: GenerationMode.DEGRADED,
}

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EmittedTokens:
    """Committed tokens with the text that became certain with each."""

    emit: Emit
    texts: Sequence[str]

    def tokens(self, completion: int) -> Tokens:
        """What the client is told of them. A stop string may have ended the text before the round's last token."""
        emit = self.emit
        logprobs = emit.logprobs or [None] * len(emit.token_ids)
        return Tokens(
            position=emit.position,
            text="".join(self.texts),
            tokens=tuple(map(Token, emit.token_ids[: len(self.texts)], self.texts, emit.origins, logprobs)),
            rolled_back=emit.rolled_back,
            num_draft_tokens=emit.num_draft_tokens,
            completion=completion,
        )


class Generation:
    """Runs one completion to its end. Iterate over `run()`; then read the results."""

    def __init__(
        self,
        request: GenerationRequest,
        *,
        session_id: str,
        target: ModelInfo,
        decoder: TextDecoder,
        route: Route,
        max_run_ahead: int,
        trace: TraceContext,
        deadline: float | None = None,
    ) -> None:
        """`route` is the request's, shared by its completions. `deadline` is the caller's, on the monotonic clock."""
        self.request = request
        self.session = Session(
            request.prompt_token_ids,
            vocab_size=target.vocab_size,
            max_run_ahead=max_run_ahead,
            drafting=request.speculate,
            num_spare_drafters=SPARE_DRAFTERS,
        )
        self.draft_model = ""
        """Name of the drafter's model, the latest one's if there were several; empty if there was none."""
        self.final_text = ""
        """Text that was held back to the end."""
        self.num_emitted = 0
        """Tokens given out. A stop string may end the text before the round's last token."""
        self.num_cached_prompt_tokens = 0
        """Tokens of the prompt that the verifier had already read for another session."""
        self.first_token_ms = 0.0
        self.total_ms = 0.0
        self._started = time.monotonic()
        self._deadline = deadline
        self._session_id = session_id
        self._decoder = decoder
        self._route = route
        self._draft_open = DraftOpen(
            session_id=session_id,
            token_ids=request.prompt_token_ids,
            num_prompt_tokens=len(request.prompt_token_ids),
            sampling=request.sampling,
            max_run_ahead=max_run_ahead,
            tree_width=request.tree_width,
            max_length=request.max_length,
            vocab_size=target.vocab_size,
            trace=trace,
        )
        self._verify_open = VerifyOpen(
            session_id=session_id,
            token_ids=request.prompt_token_ids,
            num_prompt_tokens=len(request.prompt_token_ids),
            sampling=request.sampling,
            max_length=request.max_length,
            stop_token_ids=request.stop_token_ids,
            ignore_eos=request.ignore_eos,
            max_draft_tokens=request.max_draft_tokens,
            num_logprobs=request.num_logprobs,
            trace=trace,
        )
        self._ending = Ending.of(self._verify_open, target.eos_token_ids)
        self._verifier: VerifierLink
        self._verifier_is_open = asyncio.Event()
        self._avoided_verifiers: set[Replica] = set()
        """Those that have refused or been lost since the last verdict."""
        self._num_verifiers_lost = 0
        self._refusal: OutriderError | None = None
        self._drafter: DrafterLink | None = None
        self._avoided_drafters: set[Replica] = set()
        """Those that the session has had."""
        self._relay: asyncio.Task[None] | None = None
        self._is_over = False
        """Whether the streams have been closed from here."""

    async def run(self) -> AsyncGenerator[EmittedTokens]:
        """Yields the tokens of each round. Raises OutriderError if no verifier takes the session, or none is left."""
        try:
            seat: Seat | None = self._route.verifier(len(self.session.line))
            while seat is not None:
                try:
                    with VerifierLink(seat) as self._verifier:
                        await self._open()
                        async for emitted in self._rounds():
                            if self.first_token_ms == 0.0:
                                self.first_token_ms = self._elapsed_ms()
                            yield emitted
                    break
                except (WorkerUnavailableError, *_REFUSALS) as error:
                    self._verifier_is_open.clear()
                    seat = self._next_verifier(error)
            self.final_text = self._decoder.finish()
        finally:
            self.total_ms = self._elapsed_ms()
            if self._drafter is not None:
                self._drafter.close(failed=False)
            # An error keeps its frames, which keep this object, and a cancelled task keeps its error: if it kept them,
            # prompt and tree would stay until the interpreter looks for such rings.
            self._refusal = None
            relay, self._relay = self._relay, None
            if relay is not None:
                await self._end(relay)

    def finished(self, completion: int) -> Finished:
        """What the client is told at the end."""
        session, statistics = self.session, self.session.statistics
        assert session.finish_reason is not None
        return Finished(
            reason=session.finish_reason,
            mode=_MODES[session.drafter],
            mode_reason=session.drafter_lost_reason,
            text=self.final_text,
            usage=Usage(session.line.num_prompt_tokens, self.num_emitted, self.num_cached_prompt_tokens),
            speculation=statistics.speculation,
            timings=Timings(
                self.first_token_ms,
                self.total_ms,
                statistics.verify_ms,
                statistics.verify_wait_ms,
                statistics.draft_ms,
            ),
            completion=completion,
        )

    async def _end(self, relay: asyncio.Task[None]) -> None:
        """Both streams are closed, so the relay comes to its end. It is not cancelled while it can: grpcio never frees
        the operation of a read or write whose await was cancelled."""
        self._is_over = True
        self._verifier_is_open.set()
        _, unfinished = await asyncio.wait({relay}, timeout=RELAY_END_SECONDS)
        if unfinished:
            relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)

    async def _open(self) -> None:
        """Opens the session at the verifier, at the end of the line, with everything that has been drafted."""
        session = self.session
        if self._drafter is None and session.drafter is DrafterState.ACTIVE:
            self._open_drafter(self._draft_open.max_run_ahead, "")
        opening = replace(
            self._verify_open,
            token_ids=tuple(session.line.token_ids),
            max_draft_tokens=self.request.max_draft_tokens if self.request.speculate else 0,
            expect_drafts=session.drafter is DrafterState.ACTIVE,
            time_left_ms=self._time_left_ms(),
        )
        await self._verifier.send(opening)
        await self._tell_verifier(session.on_verifier_changed())
        self._verifier_is_open.set()
        if self._relay is None and self._drafter is not None:
            self._relay = asyncio.create_task(self._relay_drafts())

    def _next_verifier(self, error: OutriderError) -> Seat | None:
        """Where the session goes on when its verifier has refused it or is lost; None if it is over.

        Raises `error`, or an earlier refusal, if there is no other.
        """
        line = self.session.line
        reason = self._ending.reason(line.token_ids[-1], len(line)) if line.num_generated_tokens else None
        if reason is not None:  # all was decided, only the last word is lost
            self._obey(self.session.on_stopped(reason))
            return None
        if self._verifier.has_decided:
            if isinstance(error, QueueFullError):  # the client is too slow, wherever the session goes
                raise error
            self._avoided_verifiers.clear()
            self._refusal = None
        self._avoided_verifiers.add(self._verifier.replica)
        if isinstance(error, _REFUSALS):
            self._refusal = self._refusal or error
        else:
            self._num_verifiers_lost += 1
        try:
            if self._num_verifiers_lost > VERIFIERS_LOST_MAX:
                raise WorkerUnavailableError(f"{VERIFIERS_LOST_MAX + 1} verifiers were lost, the last by: {error}")
            seat = self._route.verifier(len(line), self._avoided_verifiers)
        except WorkerUnavailableError as none_left:
            try:
                raise self._refusal or error from none_left
            finally:
                del error
        _log.warning(
            "verifier replaced",
            session=self._session_id,
            lost=self._verifier.replica.address,
            found=seat.replica.address,
            reason=str(error),
        )
        return seat

    async def _rounds(self) -> AsyncGenerator[EmittedTokens]:
        async for event in self._verifier.events():
            if isinstance(event, VerifyFinished):
                self._obey(self.session.on_verify_finished(event))
            elif isinstance(event, Verdict):
                if not self.session.line.num_generated_tokens:
                    self.num_cached_prompt_tokens = event.num_cached_tokens
                for command in self.session.on_verdict(event):
                    if isinstance(command, Emit):
                        yield self._decode(command)
                    else:
                        self._obey([command])
            if self.session.finish_reason is not None:
                return

    def _decode(self, emit: Emit) -> EmittedTokens:
        texts: list[str] = []
        for token_id in emit.token_ids:
            texts.append(self._decoder.push(token_id))
            if self._decoder.stopped:
                self._obey(self.session.on_stopped(FinishReason.STOP_STRING))
                break
        self.num_emitted += len(texts)
        return EmittedTokens(emit, texts)

    def _obey(self, commands: Sequence[Command]) -> None:
        """Commands that need no stream to the verifier."""
        for command in commands:
            match command:
                case SendToDrafter(commitment) if self._drafter is not None:
                    self._drafter.send(commitment)
                case CloseDrafter() if self._drafter is not None:
                    self._drafter.close(failed=self.session.finish_reason is None)
                    self._drafter = None
                case Finish():
                    pass
                case _:
                    raise AssertionError(command)

    def _open_drafter(self, credit: int, lost_reason: str) -> list[Command]:
        """Opens a drafter at the end of the line. `lost_reason` is why the one before is gone, empty for the first."""
        line = self.session.line
        try:
            seat, trial = self._route.drafter(len(line), self._verifier.replica, self._avoided_drafters)
        except WorkerUnavailableError as none_left:
            return self.session.on_no_drafter(lost_reason or str(none_left))
        self._avoided_drafters.add(seat.replica)
        self.draft_model = seat.replica.model.name if seat.replica.model is not None else ""
        opening = replace(self._draft_open, token_ids=tuple(line.token_ids), max_run_ahead=credit)
        self._drafter = DrafterLink(seat, trial, opening, self.session.statistics)
        return []

    async def _relay_drafts(self) -> None:
        """The one writer of the verify stream once it is open: relays windows of one drafter, and then of the next."""
        while (drafter := self._drafter) is not None:
            try:
                async with aclosing(drafter.windows()) as windows:
                    async for window in windows:
                        await self._until_open()
                        await self._tell_verifier(self.session.on_drafted(window))
                        if self._drafter is not drafter:
                            break
            except OutriderError as error:
                if self._is_over:
                    return
                if self.session.finish_reason is None:
                    _log.warning(
                        "drafter lost", session=self._session_id, address=drafter.replica.address, reason=str(error)
                    )
                await self._until_open()
                lost = self.session.on_drafter_lost if drafter.is_open else self.session.on_drafter_refused
                await self._tell_verifier(lost(str(error)))
                if self._drafter is drafter:
                    return

    async def _until_open(self) -> None:
        while not self._verifier_is_open.is_set():  # it may have been lost again before this task runs
            await self._verifier_is_open.wait()

    async def _tell_verifier(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case SendToVerifier(window):
                    await self._verifier.send(window)
                case EndDrafts():
                    await self._verifier.send(command)
                case OpenDrafter(credit, reason):
                    await self._tell_verifier(self._open_drafter(credit, reason))
                case _:
                    self._obey([command])

    def _time_left_ms(self) -> int | None:
        if self._deadline is None:
            return None
        return min(max(int((self._deadline - time.monotonic()) * 1000.0), 0), TIME_LEFT_MS_MAX)

    def _elapsed_ms(self) -> float:
        return (time.monotonic() - self._started) * 1000.0
