"""Draft sessions: where the drafter should look next, over all of them, and what each has to tell."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence

from outrider.core.calibration import Calibration, decided
from outrider.core.line import Line
from outrider.core.messages import Commitment, DraftOpen, Window
from outrider.core.naming import Outbound
from outrider.core.ngram import ORDERS, Guess, NgramTable, extend
from outrider.core.step_curve import StepCurve
from outrider.core.tree import Growth, Node, NodeState, SpeculationTree
from outrider.core.validation import AUTOMATIC_WIDTH_MAX

EXPANSIONS_MAX = 16
"""Most nodes expanded in one step, over all sessions: the largest batch that runs compiled. Up to it the step-time
curve decides."""

WINDOW_GAIN_MIN = 0.1
"""Expected tokens for which a window is sent at once: a message costs the three processes about 0.3 ms together, a
token of a small target about 3 ms."""

COALESCE_SHARE = 0.25
"""Nodes of less gain are gathered for this share of a verify step before they are sent: a quarter costs a node little
freshness and saves most messages."""

NODE_SECONDS = 12e-6
"""What a published node costs: drafter, coordinator and verifier each add it to a mirror, name it, sort it and drop it.
Between 8 and 14 microseconds over all three in runs of the sessions without forward passes."""

_FORESIGHT_MIN = 0.5
"""Chance from which an n-gram guess becomes a node before the draft model has spoken: it is then likelier than all else
together, so that it stays the first of its siblings whatever the model says."""

_SCORING_CHANCE_PRIOR = 0.05
"""Chance that makes scoring a guess worth its time, until the first commit tells: t(8) / t(1) is 1.2 for the
demonstration target, and a round commits two tokens: 2 * 0.2 / 8."""


class DraftKnowledge:
    """What one drafter has learned about its device and its guesses: the prior of each session."""

    def __init__(self) -> None:
        self.curve = StepCurve()
        self._greedy, self._sampled = Calibration(), Calibration()

    def calibration(self, *, greedy: bool) -> Calibration:
        """What guesses are worth in greedy sessions, or in the others."""
        return self._greedy if greedy else self._sampled


class DraftSession:
    """One session's line and tree as the drafter sees them. All times are in seconds, by any clock that only rises."""

    def __init__(
        self, opening: DraftOpen, knowledge: DraftKnowledge | None = None, ngrams: NgramTable | None = None
    ) -> None:
        """Guesses from `ngrams`, a table of the opening's line, stand beside the draft model's proposals."""
        self.line = Line(opening.token_ids, opening.num_prompt_tokens)
        shared = (knowledge or DraftKnowledge()).calibration(greedy=opening.sampling.greedy)
        calibration = Calibration(shared)
        self._calibrations = calibration, shared
        self.tree = SpeculationTree(len(self.line) - 1, self.line.token_ids[-1], calibration.log_chance)
        self.width = opening.tree_width or AUTOMATIC_WIDTH_MAX
        """Most children of a node."""
        self._automatic = opening.tree_width == 0
        self._max_run_ahead = opening.max_run_ahead
        self._max_length = opening.max_length
        self._vocab_size = opening.vocab_size
        self._ngrams = ngrams
        self._foreseen: dict[Node, list[Guess]] = {}
        """What the n-grams say below the nodes that were taken since the last commit."""
        self._outbound = Outbound()
        self._frontier: list[tuple[float, int, Node]] = []
        self._num_pushed = 0
        self._num_reserved = 0
        self._unsent: list[Node] = []
        self._last_sent = 0.0
        self._verify_seconds = 0.0
        self._log_floor = _log_floor(_SCORING_CHANCE_PRIOR, 0.0) if self._automatic else -math.inf

    def commit(self, commitment: Commitment) -> Growth:
        """Moves the line and the tree along. Applying it twice changes nothing.

        Raises ProtocolViolationError for a gap or a contradiction.
        """
        new = self.line.commit(commitment.position, commitment.token_ids)
        decided(self.tree.root, new, self._calibrations)
        growth = self.tree.commit(new)
        if self._ngrams is not None:
            self._ngrams.commit(new)
            self._foreseen.clear()
        self._unsent = [node for node in self._unsent if node.state is NodeState.LIVE]
        self._verify_seconds = commitment.verify_ms / 1000.0
        if self._automatic and commitment.chance_min > 0.0:
            self._log_floor = _log_floor(commitment.chance_min, self._verify_seconds)
        return growth

    @property
    def num_sent_live(self) -> int:
        """How many nodes that were sent are still undecided."""
        return self.tree.num_live - sum(node.state is NodeState.LIVE for node in self._unsent)

    def best(self) -> float | None:
        """Logarithm of the chance that the most promising node to expand is reached; None if there is none to expand.

        None when the credit is used up, the line's end is reached, or nothing is left that is worth it: a node must be
        worth scoring in the round after the next one, if that starts from an outcome just worth scoring. So its chance
        is at least the square of the smallest one worth scoring, which commits carry.
        """
        if self.tree.num_live + self._num_reserved + self.width > self._max_run_ahead:
            return None
        root, frontier = self.tree.root, self._frontier
        if self._is_root_next:
            return 0.0 if root.position + 1 < self._max_length else None
        while frontier:
            node = frontier[0][2]
            if node.state is NodeState.LIVE and not node.expanded:
                log_chance = node.path_log_prob - root.path_log_prob
                return log_chance if log_chance >= self._log_floor else None
            heapq.heappop(frontier)
        return None

    def take(self) -> Node:
        """The node that `best` spoke of. It must be given to `expand` or `postpone`."""
        node = self.tree.root if self._is_root_next else heapq.heappop(self._frontier)[2]
        self._num_reserved += self.width
        if self._ngrams is not None:
            self._foresee(node, self._ngrams)
        return node

    def postpone(self, nodes: Iterable[Node]) -> None:
        """Gives nodes that were taken but not expanded back to the frontier."""
        for node in nodes:
            self._num_reserved -= self.width
            self._push(node)

    def expand(self, parent: Node, token_ids: Sequence[int], log_probs: Sequence[float]) -> None:
        """Adds the draft model's proposals below `parent`, which was taken, best first, and what the n-grams say there.

        Those of probability 0 are left out, and those not worth drafting when the width is automatic.
        """
        self._num_reserved -= self.width
        parent.expanded = True
        proposals = [
            (token_id, min(log_prob, 0.0))
            for token_id, log_prob in zip(token_ids[: self.width], log_probs[: self.width], strict=True)
        ]
        if guesses := self._foreseen.pop(parent, None):
            proposals = self._mixed(proposals, guesses)
        log_chance = self._calibrations[0].log_chance
        floor = self._log_floor + self.tree.root.path_log_prob - parent.path_log_prob
        for rank, (token_id, log_prob) in enumerate(proposals):
            # A child that the n-grams foresaw is there already, maybe not the one that they would name now.
            if token_id in parent.children or len(parent.children) == self.width:
                continue
            if log_prob > -math.inf and log_chance(rank, log_prob) >= floor:
                self._attach(parent, token_id, log_prob)

    def is_window_due(self, now: float, idle: bool) -> bool:
        """Whether what has not been sent should be sent now; `idle` says that no step of this session follows."""
        if not self._unsent:
            return False
        if idle or now - self._last_sent >= COALESCE_SHARE * self._verify_seconds:
            return True
        root_log_prob = self.tree.root.path_log_prob
        return sum(math.exp(node.path_log_prob - root_log_prob) for node in self._unsent) >= WINDOW_GAIN_MIN

    def take_window(self, draft_ms: float, now: float = 0.0) -> Window | None:
        """What has not been sent yet, or None."""
        unsent, self._unsent = self._unsent, []
        self._last_sent = now
        return self._outbound.window(self.tree, unsent, draft_ms)

    @property
    def _is_root_next(self) -> bool:
        return not self.tree.root.expanded and self._num_reserved == 0

    def _foresee(self, node: Node, ngrams: NgramTable) -> None:
        """Looks up what the n-grams say below `node`, and makes a node of it at once if there is hardly any doubt."""
        if node in self._foreseen or node.position + 1 >= self._max_length:
            return
        guesses = [
            guess
            for guess in ngrams.guesses(self._context(node, ngrams.context), self.width)
            if guess.token_id < self._vocab_size
        ]
        self._foreseen[node] = guesses
        if guesses and guesses[0].probability >= _FORESIGHT_MIN and not node.children:
            self._attach(node, guesses[0].token_id, math.log(guesses[0].probability))

    def _context(self, node: Node, context: int) -> int:
        """The last tokens of the path to `node`, packed; `context` holds those of the line."""
        path: list[int] = []
        root = self.tree.root
        while node is not root and len(path) < ORDERS[0]:
            path.append(node.token_id)
            assert node.parent is not None
            node = node.parent
        for token_id in reversed(path):
            context = extend(context, token_id)
        return context

    def _mixed(self, proposals: Sequence[tuple[int, float]], guesses: Sequence[Guess]) -> list[tuple[int, float]]:
        """The likeliest of both, best first; of a token that both name the surer one is believed.

        Where the n-grams are sure they are right far more often than the draft model, elsewhere far less, and each is
        often right where the other is wrong. To divide the rest that the n-grams leave among the proposals, as among
        shorter n-grams, was worse by 3 % of the time per token in a simulation of the demonstration pair.
        """
        log_chance = self._calibrations[0].log_chance
        log_chances = {guess.token_id: math.log(guess.probability) for guess in guesses}
        for rank, (token_id, log_prob) in enumerate(proposals):
            if log_prob > -math.inf:
                log_chances[token_id] = max(log_chances.get(token_id, -math.inf), log_chance(rank, log_prob))
        ranked = sorted(log_chances, key=log_chances.__getitem__, reverse=True)
        return [(token_id, log_chances[token_id]) for token_id in ranked[: self.width]]

    def _attach(self, parent: Node, token_id: int, log_prob: float) -> None:
        child = self.tree.attach(parent, token_id, log_prob)
        if child is not None and child.state is NodeState.LIVE:
            self._unsent.append(child)
            if child.position + 1 < self._max_length:
                self._push(child)

    def _push(self, node: Node) -> None:
        if node is self.tree.root:
            return
        self._num_pushed += 1
        heapq.heappush(self._frontier, (-node.path_log_prob, self._num_pushed, node))


def choose_expansions(sessions: Sequence[DraftSession], curve: StepCurve) -> list[list[Node]]:
    """The nodes of each session that the next step should expand: those of the highest chance over all sessions.

    Of those the first n, so that the chance of what is expanded per second, (sum p) / t(n), is greatest; at most
    EXPANSIONS_MAX.
    """
    heap = [(-best, index) for index, session in enumerate(sessions) if (best := session.best()) is not None]
    heapq.heapify(heap)
    taken: list[tuple[int, Node]] = []
    total = 0.0
    best_num, best_total, best_seconds = 0, 0.0, 1.0
    while heap and len(taken) < EXPANSIONS_MAX:
        cost, index = heapq.heappop(heap)
        taken.append((index, sessions[index].take()))
        total += math.exp(-cost)
        seconds = curve.seconds(len(taken))
        if total * best_seconds >= best_total * seconds:
            best_num, best_total, best_seconds = len(taken), total, seconds
        best = sessions[index].best()
        if best is not None:
            heapq.heappush(heap, (-best, index))
    chosen: list[list[Node]] = [[] for _ in sessions]
    for index, node in taken[:best_num]:
        chosen[index].append(node)
    for index, node in taken[best_num:]:
        sessions[index].postpone([node])
    return chosen


def _log_floor(scoring_chance: float, verify_seconds: float) -> float:
    """Logarithm of the chance from which a node is drafted; see `DraftSession.best`.

    A node must promise as much of a verify step's time, which one token is worth, as its handling takes, too.
    """
    handling = NODE_SECONDS / verify_seconds if verify_seconds > 0.0 else 0.0
    return math.log(min(max(scoring_chance**2, handling, 1e-6), 1.0))
