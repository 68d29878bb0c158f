"""A verify session: which guesses to score next, when, and what the target's choices decide."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from outrider.core.estimate.calibration import Calibration, decided
from outrider.core.estimate.confidence import VERIFY_PROBABILITIES, claim_bin
from outrider.core.estimate.context_cost import ContextTime
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.propose.constrained import allowed, proposer_of
from outrider.core.propose.constraint import Constraint
from outrider.core.propose.lookup import Ngrams
from outrider.core.propose.prediction import Prediction
from outrider.core.propose.proposer import Proposer
from outrider.core.propose.recall import Recall
from outrider.core.propose.recent_answers import RecentAnswers
from outrider.core.protocol.ending import Ending
from outrider.core.protocol.line import Line
from outrider.core.protocol.messages import DraftWindow, FinishReason, ScoredNodes, VerifyOpen
from outrider.core.protocol.naming import Grafted, Inbound
from outrider.core.protocol.tree import Node, SpeculationTree
from outrider.core.verify.draft_wait import AT_ONCE, DraftWait, ReadyDrafts, Wait
from outrider.core.verify.forbidden import without_forbidden
from outrider.core.verify.overlay import Overlay
from outrider.core.verify.selection import Beside, Candidates, most_probable
from outrider.core.verify.worth import worths, worths_of_late

_SMOOTHING = 0.2
"""Weight of the newest round in the running mean of how many nodes a round scores."""


_NO_DRAFTS_MAX = 16
"""Most of them that are remembered: drafts that come more than sixteen rounds late are of no use."""


class Decision(NamedTuple):
    """What one round committed."""

    position: int
    token_ids: list[int]
    num_accepted: int
    rows: list[int]
    """For each committed token the row of `choices` that chose it."""
    bonus: bool
    """Whether the next token follows a path that was accepted to its end, rather than a rejection."""
    finish_reason: FinishReason | None
    num_prompt_lookup: int
    """How many of the scored nodes the session looked up itself."""
    num_accepted_prompt_lookup: int
    """How many of the accepted ones."""
    num_prediction: int
    """How many of the scored nodes came from the prediction."""
    num_accepted_prediction: int
    """How many of the accepted ones."""


class VerifyEstimates:
    """What one verifier has learned about its device and its drafts: the prior of each session."""

    def __init__(self) -> None:
        self.curve = StepCurve()
        """The time of steps while a drafter works beside the target."""
        self._alone: StepCurve | None = None
        self.probability_min = 0.0
        """Of the latest step; see `Selection`."""
        self._greedy = Calibration(VERIFY_PROBABILITIES), DraftWait()
        self._sampled = Calibration(VERIFY_PROBABILITIES), DraftWait()

    def of(self, *, greedy: bool) -> tuple[Calibration, DraftWait]:
        """What holds for greedy sessions, or for the others."""
        return self._greedy if greedy else self._sampled

    def steps(self, *, drafting: bool) -> StepCurve:
        """The time of steps while drafts are expected, or while none are.

        A target that runs alone may have the machine to itself: its steps tell nothing of those beside a drafter.
        """
        if drafting:
            return self.curve
        if self._alone is None:
            self._alone = copy.deepcopy(self.curve)
        return self._alone

    def restart(self, observations: Iterable[tuple[int, float]], in_context: Iterable[ContextTime] = ()) -> None:
        """Forgets the time of steps but for these; see `StepCurve.restart`."""
        self.curve.restart(observations, in_context)
        self._alone = None


class VerifySession:
    """One session's line and tree as the verifier sees them. All times are in seconds, by any clock that only rises."""

    def __init__(
        self,
        opening: VerifyOpen,
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        max_live_nodes: int,
        estimates: VerifyEstimates | None = None,
        ngram_table: Callable[[], Ngrams] | None = None,
        recent: RecentAnswers | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """Guesses by itself what the `opening` predicts and, below what its drafter has sent, what is looked up if
        `ngram_table` makes an empty table to read the line, and what is recalled of `recent` answers.

        `constraint`, which has followed the line, forbids and forces guesses.
        """
        self.line = Line(opening.token_ids, opening.num_prompt_tokens)
        estimates = estimates or VerifyEstimates()
        self._estimates = estimates
        self._curve = estimates.curve
        shared_calibration, self._shared_draft_wait = estimates.of(greedy=opening.sampling.greedy)
        calibration = shared_calibration.for_session()
        self._calibrations = calibration, shared_calibration
        self._draft_wait = DraftWait(self._shared_draft_wait)
        log_acceptance = calibration.log_acceptance
        self.tree = SpeculationTree(
            len(self.line) - 1, self.line.token_ids[-1], lambda log_prob: log_acceptance(claim_bin(log_prob))
        )
        self._inbound = Inbound(vocab_size=vocab_size, max_live_nodes=max_live_nodes)
        self._max_length = opening.max_length
        self._max_draft_tokens = opening.max_draft_tokens
        self._ngram_table = ngram_table
        self._constraint = constraint
        self._proposer: Proposer | None = None
        prediction = opening.prediction_token_ids
        self._prediction = Prediction(prediction, self.line) if prediction else None
        self.recall = None if recent is None else Recall(recent, self.line)
        self._overlay = self._fresh_overlay()
        self._ending = Ending.of(opening, eos_token_ids)
        self._last_verdict: float | None = None
        self._no_drafts_since: dict[int, float] = {}
        """Roots that a verdict left with nothing below: position and time, until the first draft below one comes."""
        self._deepest: tuple[int, float] = (0, 0.0)
        """Position of the deepest node and when it came."""
        self._waits = False
        self._mean_num_nodes = 1.0
        self._log_acceptance_min = -math.inf
        """Logarithm of the chance from which guesses are scored at present, as far as is known."""
        self._price = 0.0
        """What it costs other sessions that a guess is scored, in tokens: their part of that chance."""

    def graft(self, window: DraftWindow, now: float = 0.0) -> Grafted:
        """Adds draft nodes that arrived at `now`. Raises ProtocolViolationError."""
        self._overlay = self._fresh_overlay()
        grafted = self._inbound.graft(self.tree, window)
        if self._constraint is not None:
            grafted = without_forbidden(self.tree, grafted, self._constraint)
        for _, log_prob, right in grafted.late:
            for calibration in self._calibrations:
                calibration.observe(claim_bin(log_prob), right)
        if grafted.late:
            log_acceptance = self._calibrations[0].log_acceptance
            self._observe_places(worths_of_late(grafted.late, log_acceptance, self._log_acceptance_min, self._price))
        self._observe_arrival(window, grafted, now)
        return grafted

    def limit_drafts(self, max_draft_tokens: int) -> None:
        """A round verifies at most so many draft tokens from the next one on."""
        self._max_draft_tokens = max_draft_tokens
        self._overlay = self._fresh_overlay()

    @property
    def candidates(self) -> Candidates:
        """What the next round may score. A node at the line's last position is not: the token there comes with its
        parent's row."""
        return Candidates(self.tree, self._max_draft_tokens, self._max_length - 2, self._overlay)

    def _fresh_overlay(self) -> Overlay | None:
        if not self._max_draft_tokens:
            return None
        self._proposer = self._proposer or proposer_of(self.line, self._ngram_table, self._constraint)
        prediction, recall = (allowed(self._constraint, each) for each in (self._prediction, self.recall))
        if self._proposer is None and prediction is None and recall is None:
            return None
        return Overlay(self.tree, self._proposer, self._calibrations[0].log_acceptance, prediction, recall)

    @property
    def num_ready_levels(self) -> int:
        """How deep the most probable path at hand goes, in tokens, up to the most that one round verifies."""
        depth = 0
        node = self.tree.root
        while node.children and depth < self._max_draft_tokens:
            node = max(node.children.values(), key=lambda child: child.log_prob)
            depth += 1
        return depth

    def wait(self, now: float, num_beside: int = 0) -> Wait:
        """Whether to wait for drafts before the next round, in which `num_beside` other sessions take part.

        Asked again whenever drafts arrive.
        """
        if self._last_verdict is None or not self._max_draft_tokens or (self._overlay and self._overlay.is_predicted()):
            return AT_ONCE
        probability_min = self._estimates.probability_min
        self._log_acceptance_min = math.log(probability_min) if probability_min > 0.0 else -math.inf
        self._price = probability_min * num_beside / (num_beside + 1)
        elapsed = now - self._last_verdict
        room = min(self._max_draft_tokens, self._max_length - 2 - self.tree.root.position)
        no_drafts = not self.tree.num_live
        wait = self._draft_wait.wait(self._ready_drafts(num_beside, 0, 1.0, no_drafts=no_drafts), room, elapsed)
        if wait.longest > 0.0 and not no_drafts:
            # Worth it if all that is at hand could be taken on. Can it?
            beside = Beside(num_beside, float(num_beside))
            drafted = self.candidates._replace(overlay=None)
            nodes = most_probable([drafted], self._curve.at((num_beside + 1) * len(self.line)), beside).nodes[0]
            ready_drafts = self._ready_drafts(
                num_beside, len(nodes), self._leaf_probability(nodes), no_drafts=not nodes
            )
            wait = self._draft_wait.wait(ready_drafts, room - len(nodes), elapsed)
        self._waits = wait.longest > 0.0
        return wait

    def _ready_drafts(
        self, num_beside: int, num_nodes: int, leaf_probability: float, *, no_drafts: bool
    ) -> ReadyDrafts:
        num_roots, num_later = num_beside + 1, max(num_nodes, round(self._mean_num_nodes))
        step_now, step_later = (
            self._curve.at(num_roots * len(self.line)).seconds(num_roots + num) for num in (num_nodes, num_later)
        )
        return ReadyDrafts(no_drafts, leaf_probability, step_now, step_later)

    def _leaf_probability(self, nodes: Sequence[Node]) -> float:
        """Chance that the target's path runs to one of `nodes` that has no children yet but may get some."""
        root_log_prob = self.tree.root.path_log_prob
        return sum(
            math.exp(node.path_log_prob - root_log_prob)
            for node in nodes
            if not node.children and node.position < self._max_length - 2
        )

    def begin(self, nodes: Sequence[Node], now: float) -> None:
        """A round over `nodes` starts. If it follows a wait that nothing came of, that is learned."""
        if self._waits and self._last_verdict is not None:
            no_drafts = not nodes or not self.tree.root.children
            since = self._last_verdict if no_drafts else max(self._last_verdict, self._deepest[1])
            for draft_wait in (self._draft_wait, self._shared_draft_wait):
                draft_wait.observe_no_draft(now - since, at_hand=not no_drafts)
        self._waits = False

    def scored(self, nodes: Sequence[Node]) -> ScoredNodes:
        """A round's `nodes` as its verdict tells of them. Ask before it is decided."""
        if self._overlay is not None:  # nothing that was drafted stands below what was looked up
            nodes = sorted(nodes, key=self._overlay.holds)
        numbers: dict[Node | None, int] = {node: number for number, node in enumerate(nodes, 1)}
        return ScoredNodes([numbers.get(node.parent, 0) for node in nodes], [node.token_id for node in nodes])

    def decide(self, nodes: Sequence[Node], choices: Sequence[int], now: float = 0.0) -> Decision:
        """Accepts the path of `nodes` that the target chose, adds the next token, and commits both, at `now`.

        `choices[0]` is the target's token after the root, `choices[i + 1]` the one after `nodes[i]`.
        """
        rows_below: dict[Node | None, dict[int, int]] = {}
        for row, node in enumerate(nodes, 1):
            rows_below.setdefault(node.parent, {})[node.token_id] = row
        position = len(self.line)
        token_ids: list[int] = []
        rows: list[int] = []
        accepted: list[Node] = []
        reason: FinishReason | None = None
        node, row, bonus = self.tree.root, 0, False
        while row is not None and reason is None:
            token_id = choices[row]
            token_ids.append(token_id)
            rows.append(row)
            reason = self._ending.reason(token_id, position + len(token_ids))
            below = rows_below.get(node)
            bonus = bool(nodes) and below is None
            row = below.get(token_id) if below is not None else None
            if row is not None:
                node = nodes[row - 1]
                accepted.append(node)
        scored_own, accepted_own = (
            (0, 0) if self._overlay is None else self._overlay.num_own(some) for some in (nodes, accepted)
        )
        self._observe_places(worths(self.tree.root, token_ids, self._log_acceptance_min, self._price))
        decided(self._guesses(token_ids), self._calibrations)
        if self._prediction is not None:
            decided(self._prediction.guesses(token_ids), self._calibrations)
        self.line.commit(position, token_ids)
        self.tree.commit(token_ids)
        if self._constraint is not None:
            self._constraint.commit(token_ids)
        if self._overlay is not None:
            for proposer in (self._proposer, self._prediction, self.recall):
                if proposer is not None:
                    proposer.commit(token_ids)
            self._overlay = self._fresh_overlay()
        if nodes:
            self._mean_num_nodes += _SMOOTHING * (len(nodes) - self._mean_num_nodes)
        self._last_verdict = now
        if not self.tree.num_live:
            self._no_drafts_since[self.tree.root.position] = now
            if len(self._no_drafts_since) > _NO_DRAFTS_MAX:
                self._no_drafts_since.pop(next(iter(self._no_drafts_since)))
            self._deepest = self.tree.root.position, now
        return Decision(
            position,
            token_ids,
            len(accepted),
            rows,
            bonus,
            reason,
            num_prompt_lookup=scored_own[0],
            num_accepted_prompt_lookup=accepted_own[0],
            num_prediction=scored_own[1],
            num_accepted_prediction=accepted_own[1],
        )

    def _guesses(self, token_ids: Iterable[int]) -> Iterator[tuple[int, Sequence[tuple[int, int]]]]:
        """What was guessed for the places that `token_ids` decide, by the drafter or else by the session itself."""
        node: Node | None = self.tree.root
        for token_id in token_ids:
            if node is None:
                return
            if node.children or self._overlay is None:
                yield token_id, [(child.token_id, claim_bin(child.log_prob)) for child in node.children.values()]
                node = node.children.get(token_id)
            else:
                yield token_id, self._overlay.guesses(node)
                node = self._overlay.made(node, token_id)

    def _observe_places(self, worths: Sequence[float]) -> None:
        for draft_wait in (self._draft_wait, self._shared_draft_wait):
            draft_wait.observe_places(worths)

    def _observe_arrival(self, window: DraftWindow, grafted: Grafted, now: float) -> None:
        """Learns how long the first draft after a bare root takes, and each level after it."""
        if self._no_drafts_since:
            since_no_drafts = self._no_drafts_since.get(window.base)
            self._no_drafts_since = {root: since for root, since in self._no_drafts_since.items() if root > window.base}
            if since_no_drafts is not None:
                for draft_wait in (self._draft_wait, self._shared_draft_wait):
                    draft_wait.observe_first_draft(max(now - since_no_drafts, 0.0))
        if not grafted.added:
            return
        self._waits = False
        position = max(node.position for node in grafted.added)
        if position > self._deepest[0]:
            if window.draft_ms > 0.0:
                num_levels = len({node.position for node in grafted.added})
                for draft_wait in (self._draft_wait, self._shared_draft_wait):
                    draft_wait.observe_levels(num_levels, window.draft_ms / 1000.0)
            self._deepest = position, now
