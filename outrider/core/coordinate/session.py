"""The coordinator's session: the canonical line, and what each event means for it. Events in, decisions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outrider.core.coordinate.drafter_state import TRANSITIONS, DrafterEvent, DrafterState
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.line import Line
from outrider.core.protocol.messages import (
    Commitment,
    DraftWindow,
    EndDrafts,
    FinishReason,
    TokenLogprobs,
    TokenOrigin,
    Verdict,
)
from outrider.core.protocol.naming import Inbound, Outbound
from outrider.core.protocol.tree import NodeState, SpeculationTree
from outrider.core.protocol.validation import RUN_AHEAD_MAX, TREE_WIDTH_MAX


@dataclass(frozen=True, slots=True)
class OpenDrafter:
    """Open another drafter at the end of the line; if there is none, `on_no_drafter` follows."""

    credit: int
    """Its `max_run_ahead`."""
    reason: str
    """Why the last one is gone; empty after a pause."""


@dataclass(frozen=True, slots=True)
class Emit:
    """Committed tokens for the user."""

    position: int
    token_ids: Sequence[int]
    origins: Sequence[TokenOrigin]
    rolled_back: bool
    num_draft_tokens: int
    num_accepted: int
    logprobs: Sequence[TokenLogprobs]


@dataclass(frozen=True, slots=True)
class VerdictOutcome:
    """What a verdict that brought something new leads to."""

    emit: Emit
    commitment: Commitment | None
    """What the drafter is told, if there is one."""


# Looked up once, as those of nodes are (`tree.py`).
_ACCEPTED, _RECOVERED, _BONUS = TokenOrigin.ACCEPTED, TokenOrigin.RECOVERED, TokenOrigin.BONUS

DrafterLost = OpenDrafter | EndDrafts
"""What follows on the loss of a drafter, beside closing it: another is opened, or the verifier is told of the end."""


class Session:
    """One request's life. Every method takes one event and returns what is to be done because of it.

    None says that there is nothing to do: what happened came late, or twice. See `DrafterState` for the drafter's life.

    The drafter is untrusted: what it sends cannot change the line, and when it breaks the protocol it is lost, nothing
    else. The verifier is trusted with the choice of tokens alone; see `VerdictRules`. A verdict that leaves a gap or
    contradicts the line raises ProtocolViolationError.
    """

    def __init__(
        self,
        prompt_token_ids: Sequence[int],
        received_token_ids: Sequence[int] = (),
        *,
        vocab_size: int,
        max_run_ahead: int,
        drafting: bool,
        pause_reason: str = "",
        num_spare_drafters: int = 0,
    ) -> None:
        """Starts behind the prompt and what has been generated before. `drafting` says whether a drafter is being
        opened.

        If there is a `pause_reason`, it is not opened before speculation resumes. A drafter that is lost is replaced
        `num_spare_drafters` times.
        """
        self.line = Line([*prompt_token_ids, *received_token_ids], len(prompt_token_ids))
        self.tree = SpeculationTree(len(self.line) - 1, self.line.token_ids[-1])
        self.statistics = SpeculationStatistics()
        self.drafter = DrafterState.NONE
        if drafting:
            self.drafter = DrafterState.PAUSED if pause_reason else DrafterState.ACTIVE
        self.own_draft_model = ""
        """Name of the model with which the present verifier drafts where no drafter feeds the session; empty: none."""
        self._reason = pause_reason if drafting else ""
        """Why no drafter feeds the session though one was wanted; empty while one does."""
        self.finish_reason: FinishReason | None = None
        self._vocab_size = vocab_size
        self._max_run_ahead = max_run_ahead
        self._num_spare_drafters = num_spare_drafters
        self._inbound = Inbound(vocab_size=vocab_size, max_live_nodes=max_run_ahead)
        self._outbound = Outbound()

    @property
    def is_paused(self) -> bool:
        """Whether a drafter is wanted and speculation does not pay at present."""
        return self.drafter is DrafterState.PAUSED

    @property
    def hears_drafter(self) -> bool:
        """Whether drafts are to be expected, and change something."""
        return self.drafter.is_feeding and self.finish_reason is None

    @property
    def drafts_in_turn(self) -> bool:
        """Whether the verifier drafts for itself: no drafter feeds the session, though one was wanted."""
        return bool(self.own_draft_model) and self.drafter in (DrafterState.MISSED, DrafterState.LOST)

    @property
    def mode_reason(self) -> str:
        """Why nobody drafts for the session though that was wanted; empty while somebody does."""
        return "" if self.drafts_in_turn else self._reason

    def on_drafted(self, window: DraftWindow) -> DraftWindow | DrafterLost | None:
        """Draft nodes arrived: returns those that are news, for the verifier, or what follows on a broken protocol."""
        if not self.hears_drafter:
            return None
        try:
            grafted = self._inbound.graft(self.tree, window)
        except ProtocolViolationError as violation:
            return self.on_drafter_lost(f"the drafter broke the protocol: {violation}")
        if grafted.num_news:
            self.statistics.num_drafted_nodes += grafted.num_news
            self.statistics.num_stale_nodes += grafted.num_stale
            self.statistics.draft_ms += window.draft_ms
        return self._outbound.window(self.tree, grafted.added, window.draft_ms, window.sent_ms)

    def on_drafter_lost(self, reason: str) -> DrafterLost | None:
        """The drafter is gone, or has to go: another one is opened, or the verifier continues alone."""
        return self._replace_drafter(DrafterEvent.IS_LOST, reason)

    def on_drafter_refused(self, reason: str) -> DrafterLost | None:
        """The drafter did not take the session: as if it were lost, but it never fed it."""
        return self._replace_drafter(DrafterEvent.REFUSES, reason)

    def on_drafter_handed_over(self, reason: str) -> DrafterLost | None:
        """The drafter is about to stop, and another one may take the session: that costs no spare one."""
        return self._replace_drafter(DrafterEvent.IS_LOST, reason, num_spent=0)

    def on_no_drafter(self, reason: str) -> EndDrafts | None:
        """There is no drafter, or no other one, to be opened: the verifier continues alone."""
        if not self._advance(DrafterEvent.HAS_NO_SUCCESSOR):
            return None
        self._reason = reason
        return EndDrafts()

    def on_paused(self, reason: str) -> bool:
        """Speculation is not to go on for the present. Returns whether the drafter is to be closed."""
        if not self._advance(DrafterEvent.PAUSES):
            return False
        self._forget_unnamed()
        self._reason = reason
        return True

    def on_resumed(self) -> OpenDrafter | None:
        """Speculation is to go on: a drafter is opened at the end of the line, unless old drafts leave no credit."""
        credit = self._next_credit()
        if credit is None or not self._advance(DrafterEvent.RESUMES):
            return None
        self._reason = ""
        return self._opened(credit, "")

    def on_verifier_changed(self, own_draft_model: str = "") -> DraftWindow | None:
        """Another verifier was opened at the end of the line. It is told all nodes that are live, as news."""
        self.own_draft_model = own_draft_model
        self._outbound = Outbound()
        # In the order in which they were named first: it says how the drafter ranks siblings.
        nodes = sorted(self.tree.live_nodes(), key=lambda node: node.node_id)
        return self._outbound.window(self.tree, nodes)

    def on_verdict(self, verdict: Verdict) -> VerdictOutcome | None:
        """A round was decided: commit it, tell the drafter, emit the tokens. A verdict seen before changes nothing.

        Raises ProtocolViolationError for a gap, a contradiction, or a count that cannot be.
        """
        if self.finish_reason is not None:
            return None
        num_next = len(verdict.token_ids) - verdict.num_accepted
        if not verdict.token_ids or num_next not in (0, 1) or not 0 <= verdict.num_accepted <= verdict.num_draft_tokens:
            raise ProtocolViolationError(
                "a verdict commits accepted draft tokens and at most one more, together not none"
            )
        num_own, num_accepted_own = (
            verdict.num_prompt_lookup + verdict.num_prediction,
            verdict.num_accepted_prompt_lookup + verdict.num_accepted_prediction,
        )
        if not (
            num_own <= verdict.num_draft_tokens
            and num_accepted_own <= verdict.num_accepted
            and verdict.num_accepted_prompt_lookup <= verdict.num_prompt_lookup
            and verdict.num_accepted_prediction <= verdict.num_prediction
        ):
            raise ProtocolViolationError("a verdict's own guesses, looked up or predicted, are among its draft tokens")
        new = self.line.commit(verdict.position, verdict.token_ids)
        if not new:
            return None
        growth = self.tree.commit(new)
        rolled_back = not growth.followed and self.drafter.is_feeding
        num_known = len(verdict.token_ids) - len(new)
        origins = _origins(verdict)[num_known:]
        emit = Emit(
            position=verdict.position + num_known,
            token_ids=new,
            origins=origins,
            rolled_back=rolled_back,
            num_draft_tokens=verdict.num_draft_tokens,
            num_accepted=origins.count(_ACCEPTED),
            logprobs=verdict.logprobs[num_known:],
        )
        self._count(verdict, emit, growth.followed)
        if not self.drafter.is_feeding:
            return VerdictOutcome(emit, None)
        commitment = Commitment(
            emit.position, new, rolled_back, verdict.verify_ms, verdict.probability_min, verdict.cutoff_ms
        )
        return VerdictOutcome(emit, commitment)

    def on_stopped(self, reason: FinishReason) -> None:
        """The session is over, by the verifier's rules or because of a stop string. The first reason stays."""
        if self.finish_reason is None:
            self.finish_reason = reason

    def _advance(self, event: DrafterEvent) -> bool:
        """Enters the drafter's next state. False if the event comes too late to matter."""
        after = TRANSITIONS[self.drafter].get(event)
        if after is None or self.finish_reason is not None:
            return False
        self.drafter = after
        return True

    def _replace_drafter(self, event: DrafterEvent, reason: str, num_spent: int = 1) -> DrafterLost | None:
        if not self._advance(event):
            return None
        self._forget_unnamed()
        credit = self._next_credit()
        if self._num_spare_drafters < num_spent or credit is None:
            return self.on_no_drafter(reason)
        self._num_spare_drafters -= num_spent
        return self._opened(credit, reason)

    def _forget_unnamed(self) -> None:
        """What a broken window left behind was never sent on, so nobody else knows it."""
        for node in [node for node in self.tree.live_nodes() if node.node_id == 0]:
            if node.state is NodeState.LIVE:
                self.tree.drop(node)

    def _next_credit(self) -> int | None:
        """The next drafter's; None if there is too little. It is not told of the nodes that are live, and the verifier
        bears no more than RUN_AHEAD_MAX."""
        credit = min(self._max_run_ahead, RUN_AHEAD_MAX - self.tree.num_live)
        return credit if credit >= min(self._max_run_ahead, TREE_WIDTH_MAX) else None

    def _opened(self, credit: int, reason: str) -> OpenDrafter:
        self._inbound = Inbound(vocab_size=self._vocab_size, max_live_nodes=self.tree.num_live + credit)
        return OpenDrafter(credit, reason)

    def _count(self, verdict: Verdict, emit: Emit, followed: bool) -> None:
        statistics = self.statistics
        if emit.origins[-1] is _RECOVERED:
            statistics.num_rejections += 1
            statistics.num_recovered_token_hits += followed
        elif emit.origins[-1] is _BONUS:
            statistics.num_bonuses += 1
            statistics.num_bonus_hits += followed
        statistics.num_rounds += 1
        statistics.num_draft_tokens += verdict.num_draft_tokens
        statistics.num_accepted_tokens += emit.num_accepted
        statistics.num_prompt_lookup_tokens += verdict.num_prompt_lookup
        statistics.num_accepted_prompt_lookup_tokens += min(verdict.num_accepted_prompt_lookup, emit.num_accepted)
        statistics.num_prediction_tokens += verdict.num_prediction
        statistics.num_accepted_prediction_tokens += min(verdict.num_accepted_prediction, emit.num_accepted)
        statistics.num_committed_tokens += len(emit.token_ids)
        statistics.num_rollbacks += emit.rolled_back
        statistics.num_stale_nodes += verdict.num_stale_nodes
        statistics.verify_ms += verdict.verify_ms
        statistics.verify_wait_ms += verdict.wait_ms
        statistics.drafted_by_round.append(verdict.num_draft_tokens)
        statistics.accepted_by_round.append(emit.num_accepted)


def _origins(verdict: Verdict) -> list[TokenOrigin]:
    origins = [_ACCEPTED] * verdict.num_accepted
    if len(verdict.token_ids) > verdict.num_accepted:
        origins.append(_next_token_origin(verdict))
    return origins


def _next_token_origin(verdict: Verdict) -> TokenOrigin:
    if verdict.num_draft_tokens == 0:
        return TokenOrigin.TARGET
    return _BONUS if verdict.bonus else _RECOVERED
