"""A request at a coordinator that may crash, and what it and its client say to one another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from outrider.core.coordinate.session import DrafterLost, Emit, OpenDrafter, Session
from outrider.core.protocol.ending import Ending
from outrider.core.protocol.messages import (
    DraftWindow,
    EndDrafts,
    FinishReason,
    Verdict,
    VerifyFinished,
)

from .processes import Process, Stream, Watch
from .scenario import Conduct
from .toys import EOS_TOKEN_ID

if TYPE_CHECKING:
    from .crashes import CrashingWorld

LOST_VERIFIERS_MAX = 3
"""More than that, and a coordinator gives a request up."""
SPARE_DRAFTERS = 3


class Took(NamedTuple):
    """Tokens for the client."""

    position: int
    token_ids: list[int]


class Ended(NamedTuple):
    """The last word for the client."""

    reason: FinishReason


class Failed(NamedTuple):
    """The coordinator gives the request up."""

    why: str


@dataclass(frozen=True, slots=True)
class Ask:
    """The request: the prompt is known to all; `received` are the tokens that the client has."""

    received: tuple[int, ...]


class CoordinatorSide:
    """A request at a coordinator: what `coordinator/generation.py` does, with the client's stream beside it."""

    def __init__(self, world: CrashingWorld, process: Process) -> None:
        self.process = process
        self._world = world
        self._client: Stream | None = None
        self._verifier: Stream | None = None
        self._drafter: Stream | None = None
        self._watches: dict[int, Watch] = {}
        self._num_lost = 0
        self._is_over = False
        self._session: Session

    def on_message(self, stream: Stream, message: Any) -> None:
        """See `End`."""
        if isinstance(message, Ask):
            self._client = stream
            self._open(message)
        elif not self._is_over and stream in (self._verifier, self._drafter):
            self._watches[id(stream)].heard()
            if stream is self._verifier:
                self._on_verifier(message)
            else:
                self._obey(self._session.on_drafted(message))
        self._world.check_coordinator(self._session)

    def on_closed(self, stream: Stream) -> None:
        """See `End`."""
        if self._is_over:
            return
        if stream is self._client:
            self._world.seen["left by its client"] += 1
            self._end()
        elif stream is self._verifier:
            self._on_verifier_lost()
        elif stream is self._drafter:
            self._obey(self._session.on_drafter_lost("it is gone"))

    def _open(self, ask: Ask) -> None:
        scenario = self._world.scenario
        drafting = scenario.conduct is not Conduct.ABSENT
        self._session = Session(
            [*scenario.prompt, *ask.received],
            vocab_size=scenario.target.vocab_size,
            max_run_ahead=scenario.max_run_ahead,
            drafting=drafting,
            num_spare_drafters=SPARE_DRAFTERS,
        )
        self._opening = scenario.opening()
        if not self._end_if_decided():
            self._open_verifier()
            if drafting and not self._is_over:
                self._open_drafter(scenario.max_run_ahead)

    def _open_verifier(self) -> None:
        line = tuple(self._session.line.token_ids)
        stream = self._verifier = self._world.connect(self, "verifier", self._world.scenario.repeat_rate)
        self._watch(stream, self.on_closed)
        stream.send(self, replace(self._opening, token_ids=line, expect_drafts=self._session.hears_drafter))
        window = self._session.on_verifier_changed()
        if window is not None:
            stream.send(self, window)

    def _open_drafter(self, credit: int) -> None:
        line = list(self._session.line.token_ids)
        stream = self._drafter = self._world.connect(self, "drafter", self._world.scenario.repeat_rate)
        self._watch(stream, self.on_closed)
        stream.send(self, replace(self._world.scenario, prompt=line, max_run_ahead=credit))

    def _watch(self, stream: Stream, give_up: Any) -> None:
        self._watches[id(stream)] = Watch(self, stream, give_up)

    def _on_verifier(self, message: Verdict | VerifyFinished) -> None:
        if isinstance(message, VerifyFinished):
            self._finish(message.reason)
            return
        outcome = self._session.on_verdict(message)
        if outcome is None:
            return
        if outcome.commitment is not None and self._drafter is not None:
            self._drafter.send(self, outcome.commitment)
        self._emit(outcome.emit)

    def _emit(self, emit: Emit) -> None:
        """What a stop string cuts off is not given out."""
        token_ids = list(emit.token_ids)
        stop_at = self._world.stop_at
        if stop_at is not None:
            token_ids = token_ids[: max(stop_at - emit.position, 0)]
        assert self._client is not None
        self._client.send(self, Took(emit.position, token_ids))
        if stop_at is not None and len(self._session.line) >= stop_at:
            self._finish(FinishReason.STOP_STRING)

    def _on_verifier_lost(self) -> None:
        self._num_lost += 1
        self._world.seen["verifier lost"] += 1
        if self._end_if_decided():
            return
        if self._num_lost > LOST_VERIFIERS_MAX:
            self._world.seen["request given up"] += 1
            assert self._client is not None
            self._client.send(self, Failed("too many verifiers were lost"))
            self._end()
        else:
            self._open_verifier()

    def _end_if_decided(self) -> bool:
        """Whether only the last word of it was lost."""
        line = self._session.line
        if len(line) == len(self._world.scenario.prompt):
            return False
        ending = Ending.of(self._opening, [EOS_TOKEN_ID])
        reason = ending.reason(line.token_ids[-1], len(line))
        if self._world.stop_at is not None and len(line) >= self._world.stop_at:
            reason = FinishReason.STOP_STRING
        if reason is None:
            return False
        self._world.seen["last word lost"] += 1
        self._finish(reason)
        return True

    def _obey(self, outcome: DraftWindow | DrafterLost | None) -> None:
        match outcome:
            case None:
                pass
            case DraftWindow():
                self._tell_verifier(outcome)
            case EndDrafts():
                self._leave_drafter()
                self._tell_verifier(outcome)
            case OpenDrafter(credit, _):
                self._leave_drafter()
                self._world.seen["drafter replaced"] += 1
                self._open_drafter(credit)

    def _tell_verifier(self, command: DraftWindow | EndDrafts) -> None:
        assert self._verifier is not None
        self._verifier.send(self, command)

    def _leave_drafter(self) -> None:
        if self._drafter is not None:
            self._watches.pop(id(self._drafter)).end()
            self._drafter.close(self)
            self._drafter = None

    def _finish(self, reason: FinishReason) -> None:
        if self._session.finish_reason is not None:
            return
        self._session.on_stopped(reason)
        assert self._client is not None
        self._client.send(self, Ended(reason))
        self._world.strike_at_the_end("coordinator")
        self._end()

    def _end(self) -> None:
        self._is_over = True
        for watch in self._watches.values():
            watch.end()
        for stream in (self._client, self._verifier, self._drafter):
            if stream is not None:
                stream.close(self)
