"""A verify session: which guesses to score next, when, and what the target's choices decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from outrider.core.estimate.calibration import decided
from outrider.core.estimate.confidence import claim_bin
from outrider.core.propose.constraint import Constraint
from outrider.core.propose.lookup import Ngrams
from outrider.core.propose.prediction import Prediction
from outrider.core.propose.recall import Recall
from outrider.core.propose.recent_answers import RecentAnswers
from outrider.core.protocol.ending import Ending
from outrider.core.protocol.line import Line
from outrider.core.protocol.messages import DraftWindow, ScoredNodes, VerifyOpen
from outrider.core.protocol.naming import Grafted, Inbound
from outrider.core.protocol.tree import Node, SpeculationTree
from outrider.core.verify.arrivals import Arrivals
from outrider.core.verify.decision import Decision, follow
from outrider.core.verify.draft_wait import AT_ONCE, ReadyDrafts, Wait
from outrider.core.verify.estimates import VerifyEstimates
from outrider.core.verify.forbidden import without_forbidden
from outrider.core.verify.own_guesses import OwnGuesses
from outrider.core.verify.selection import Beside, Candidates, Select, most_probable
from outrider.core.verify.worth import worths, worths_of_late

_SMOOTHING = 0.2
"""Weight of the newest round in the running mean of how many nodes a round scores."""


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
        select: Select = most_probable,
    ) -> None:
        """Guesses by itself what the `opening` predicts and, below what its drafter has sent, what is looked up if
        `ngram_table` makes an empty table to read the line, and what is recalled of `recent` answers.

        `constraint`, which has followed the line, forbids and forces guesses. `select` is what chooses those that its
        rounds score.
        """
        self.line = Line(opening.token_ids, opening.num_prompt_tokens)
        estimates = estimates or VerifyEstimates()
        self._estimates = estimates
        self._curve = estimates.curve
        shared_calibration, shared_draft_wait = estimates.of(greedy=opening.sampling.greedy)
        calibration = shared_calibration.for_session()
        self._calibrations = calibration, shared_calibration
        self._arrivals = Arrivals(shared_draft_wait)
        log_acceptance = calibration.log_acceptance
        self.tree = SpeculationTree(
            len(self.line) - 1, self.line.token_ids[-1], lambda log_prob: log_acceptance(claim_bin(log_prob))
        )
        self._inbound = Inbound(vocab_size=vocab_size, max_live_nodes=max_live_nodes)
        self._inbound_in_turn = Inbound(vocab_size=vocab_size, max_live_nodes=2 * max_live_nodes)
        """Of a drafter in turn, which may follow on one whose nodes still stand."""
        self._max_length = opening.max_length
        self._max_draft_tokens = opening.max_draft_tokens
        self._constraint = constraint
        self._select = select
        prediction = opening.prediction_token_ids
        self.recall = None if recent is None else Recall(recent, self.line)
        self._own = OwnGuesses(
            self.tree,
            self.line,
            log_acceptance,
            ngram_table=ngram_table,
            prediction=Prediction(prediction, self.line) if prediction else None,
            recall=self.recall,
            constraint=constraint,
            is_wanted=opening.max_draft_tokens > 0,
        )
        self._ending = Ending.of(opening, eos_token_ids)
        self._mean_num_nodes = 1.0
        self._log_acceptance_min = -math.inf
        """Logarithm of the chance from which guesses are scored at present, as far as is known."""
        self._price = 0.0
        """What it costs other sessions that a guess is scored, in tokens: their part of that chance."""

    def graft(self, window: DraftWindow, now: float = 0.0) -> Grafted:
        """Adds draft nodes that arrived at `now`. Raises ProtocolViolationError."""
        grafted = self._graft(window, self._inbound)
        if grafted.late:
            log_acceptance = self._calibrations[0].log_acceptance
            late = worths_of_late(grafted.late, log_acceptance, self._log_acceptance_min, self._price)
            self._arrivals.observe_places(late)
        self._arrivals.grafted(window, grafted, now)
        return grafted

    def graft_in_turn(self, window: DraftWindow) -> None:
        """Adds draft nodes for which the round has waited anyway. Raises ProtocolViolationError."""
        self._graft(window, self._inbound_in_turn)

    def _graft(self, window: DraftWindow, inbound: Inbound) -> Grafted:
        self._own.renew()
        grafted = inbound.graft(self.tree, window)
        if self._constraint is not None:
            grafted = without_forbidden(self.tree, grafted, self._constraint)
        for _, log_prob, right in grafted.late:
            for calibration in self._calibrations:
                calibration.observe(claim_bin(log_prob), right)
        return grafted

    @property
    def candidates(self) -> Candidates:
        """What the next round may score. A node at the line's last position is not: the token there comes with its
        parent's row."""
        return Candidates(self.tree, self._max_draft_tokens, self._max_length - 2, self._own.overlay)

    def wait(self, now: float, num_beside: int = 0) -> Wait:
        """Whether to wait for drafts before the next round, in which `num_beside` other sessions take part.

        Asked again whenever drafts arrive.
        """
        arrivals, overlay = self._arrivals, self._own.overlay
        if arrivals.last_verdict is None or not self._max_draft_tokens or (overlay and overlay.is_predicted()):
            return AT_ONCE
        probability_min = self._estimates.probability_min
        self._log_acceptance_min = math.log(probability_min) if probability_min > 0.0 else -math.inf
        self._price = probability_min * num_beside / (num_beside + 1)
        elapsed = now - arrivals.last_verdict
        room = min(self._max_draft_tokens, self._max_length - 2 - self.tree.root.position)
        no_drafts = not self.tree.num_live
        wait = arrivals.draft_wait.wait(self._ready_drafts(num_beside, 0, 1.0, no_drafts=no_drafts), room, elapsed)
        if wait.longest > 0.0 and not no_drafts:
            # Worth it if all that is at hand could be taken on. Can it?
            beside = Beside(num_beside, float(num_beside))
            drafted = self.candidates._replace(overlay=None)
            nodes = self._select([drafted], self._curve.at((num_beside + 1) * len(self.line)), beside).nodes[0]
            ready_drafts = self._ready_drafts(
                num_beside, len(nodes), self._leaf_probability(nodes), no_drafts=not nodes
            )
            wait = arrivals.draft_wait.wait(ready_drafts, room - len(nodes), elapsed)
        arrivals.is_waiting = wait.longest > 0.0
        return wait

    def _ready_drafts(
        self, num_beside: int, num_nodes: int, leaf_probability: float, *, no_drafts: bool
    ) -> ReadyDrafts:
        num_roots, num_later = num_beside + 1, max(num_nodes, round(self._mean_num_nodes))
        seconds = self._curve.at(num_roots * len(self.line)).seconds
        return ReadyDrafts(no_drafts, leaf_probability, seconds(num_roots + num_nodes), seconds(num_roots + num_later))

    def _leaf_probability(self, nodes: Sequence[Node]) -> float:
        """Chance that the target's path runs to one of `nodes` that has no children yet but may get some."""
        root_log_prob = self.tree.root.path_log_prob
        return sum(
            math.exp(node.path_log_prob - root_log_prob)
            for node in nodes
            if not node.children and node.position < self._max_length - 2
        )

    @property
    def cutoff(self) -> float:
        """When a window had to be sent at the latest to be in the present round, by its drafter's clock; 0 while
        unknown."""
        return self._arrivals.cutoff

    def begin(self, nodes: Sequence[Node], now: float) -> None:
        """A round over `nodes` starts. If it follows a wait that nothing came of, that is learned."""
        self._arrivals.begin(now, no_drafts=not nodes or not self.tree.root.children)

    def scored(self, nodes: Sequence[Node]) -> ScoredNodes:
        """A round's `nodes` as its verdict tells of them. Ask before it is decided."""
        nodes = self._own.drafted_first(nodes)
        numbers: dict[Node | None, int] = {node: number for number, node in enumerate(nodes, 1)}
        return ScoredNodes([numbers.get(node.parent, 0) for node in nodes], [node.token_id for node in nodes])

    def decide(self, nodes: Sequence[Node], choices: Sequence[int], now: float = 0.0) -> Decision:
        """Accepts the path of `nodes` that the target chose, adds the next token, and commits both, at `now`.

        `choices[0]` is the target's token after the root, `choices[i + 1]` the one after `nodes[i]`.
        """
        decision, accepted = follow(self.tree.root, nodes, choices, self._ending)
        token_ids = decision.token_ids
        if nodes and self._own.overlay is not None:
            num_prompt_lookup, num_prediction = self._own.overlay.num_own(nodes)
            num_accepted_prompt_lookup, num_accepted_prediction = self._own.overlay.num_own(accepted)
            decision = decision._replace(
                num_prompt_lookup=num_prompt_lookup,
                num_accepted_prompt_lookup=num_accepted_prompt_lookup,
                num_prediction=num_prediction,
                num_accepted_prediction=num_accepted_prediction,
            )
        if self.tree.root.children:
            self._arrivals.observe_places(worths(self.tree.root, token_ids, self._log_acceptance_min, self._price))
        decided(self._own.decided(token_ids), self._calibrations)
        self.line.commit(decision.position, token_ids)
        self.tree.commit(token_ids)
        if self._constraint is not None:
            self._constraint.commit(token_ids)
        self._own.commit(token_ids)
        if nodes:
            self._mean_num_nodes += _SMOOTHING * (len(nodes) - self._mean_num_nodes)
        self._arrivals.decided(self.tree, now)
        return decision
