"""Draft sessions: where the drafter should look next, over all of them, and what each has to tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from outrider.core.draft.frontier import Frontier, LikeliestFirst
from outrider.core.draft.lattice import Bounds, Proposals, grow
from outrider.core.draft.mask_chains import MaskChains
from outrider.core.draft.outlook import Outlook
from outrider.core.estimate.calibration import Calibration, decided
from outrider.core.estimate.confidence import DRAFT_PROBABILITIES, margin_bin
from outrider.core.estimate.foresight import Foresight, discounted
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.propose.constraint import Constraint
from outrider.core.protocol.line import Line
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow
from outrider.core.protocol.naming import Outbound
from outrider.core.protocol.tree import LIVE, Growth, Node, SpeculationTree, path_tokens
from outrider.core.protocol.validation import AUTOMATIC_WIDTH_MAX, EXPANSIONS_MAX

WINDOW_GAIN_MIN = 0.1
"""Expected tokens for which a window is sent at once: a message costs the three processes about 0.3 ms together, a
token of a small target about 3 ms."""

COALESCE_SHARE = 0.25
"""Nodes of less gain are gathered for this share of a verify step before they are sent: a quarter costs a node little
freshness and saves most messages."""

NODE_SECONDS = 12e-6
"""What a published node costs: drafter, coordinator and verifier each add it to a mirror, name it, sort it and drop it.
Between 8 and 14 microseconds over all three in runs of the sessions without forward passes."""

_SCORING_PROBABILITY_PRIOR = 0.05
"""Chance that makes scoring a guess worth its time, until the first commit tells: t(8) / t(1) is 1.2 for the
demonstration target, and a round commits two tokens: 2 * 0.2 / 8."""


_CERTAIN = math.log(0.999)
"""What is claimed of a token that a constraint forces: as much as is ever learned of a guess."""


def everywhere(node: Node) -> bool:
    """What follows any node may be drafted."""
    return True


class DraftEstimates:
    """What one drafter has learned about its device and its guesses: the prior of each session."""

    def __init__(
        self,
        probabilities: Sequence[float] = DRAFT_PROBABILITIES,
        confidence_bin: Callable[[int, float], int] = margin_bin,
        *,
        num_positions: int = 1,
    ) -> None:
        """`confidence_bin` sorts a guess by its rank among its siblings, 0 the first, and by its proposer's confidence
        in it; `probabilities` are how often guesses of each bin are right at first. As they stand, a draft model's.

        A pass proposes for up to `num_positions` places below a node, from 1 to POSITIONS_MAX; above 1 the draft model
        is a parallel one, and guesses are told apart by the mask tokens before them as well.
        """
        self.curve = StepCurve()
        self.num_positions = num_positions
        self._num_bins = len(probabilities)
        self._confidence_bin = confidence_bin
        cells = discounted(probabilities, num_positions)
        self._greedy, self._sampled = Calibration(cells), Calibration(cells)
        self._foresight = {greedy: Foresight(num_positions) for greedy in (True, False)}

    def calibration(self, *, greedy: bool) -> Calibration:
        """What guesses are worth in greedy sessions, or in the others."""
        return self._greedy if greedy else self._sampled

    def foresight(self, *, greedy: bool) -> Foresight:
        """How far the passes of greedy sessions, or of the others, see ahead."""
        return self._foresight[greedy]

    def binned(self, token_ids: Sequence[int], confidences: Sequence[float], mask_depth: int = 0) -> Proposals:
        """Proposals with their bins, best first. So many mask tokens stood before them."""
        first, confidence_bin = mask_depth * self._num_bins, self._confidence_bin
        return [(token_id, first + confidence_bin(rank, confidences[rank])) for rank, token_id in enumerate(token_ids)]


class DraftSession:
    """One session's line and tree as the drafter sees them. All times are in seconds, by any clock that only rises."""

    def __init__(
        self,
        opening: DraftOpen,
        estimates: DraftEstimates | None = None,
        *,
        expands: Callable[[Node], bool] = everywhere,
        constraint: Constraint | None = None,
    ) -> None:
        """What follows a new node may be drafted if `expands` says so. `constraint` has followed the line."""
        self.line = Line(opening.token_ids, opening.num_prompt_tokens)
        estimates = estimates or DraftEstimates()
        self._binned = estimates.binned
        greedy = opening.sampling.greedy
        shared = estimates.calibration(greedy=greedy)
        self._calibrations = shared.for_session(), shared
        self.tree = SpeculationTree(len(self.line) - 1, self.line.token_ids[-1])
        self.width = opening.tree_width or AUTOMATIC_WIDTH_MAX
        """Most children of a node."""
        self.needs_path = opening.sampling.penalized or constraint is not None
        """Whether what follows a node depends on which tokens its path holds, wherever they stand."""
        self._automatic = opening.tree_width == 0
        self._expands = expands
        self._constraint = constraint
        self._max_run_ahead = opening.max_run_ahead
        self._max_length = opening.max_length
        self._outbound = Outbound()
        self._foresight: Foresight | None = None
        self._frontier: Frontier = LikeliestFirst(self.width)
        if estimates.num_positions > 1:
            self._foresight = estimates.foresight(greedy=greedy).for_session()
            self._frontier = MaskChains(self.width, self._foresight, self._has_place)
        self._num_uncomputed = 0
        self._unsent: list[Node] = []
        self._last_sent = 0.0
        self._verify_seconds = 0.0
        self._log_floor = _log_floor(_SCORING_PROBABILITY_PRIOR, 0.0) if self._automatic else -math.inf

    def commit(self, commitment: Commitment) -> Growth:
        """Moves the line and the tree along. Applying it twice changes nothing.

        Raises ProtocolViolationError for a gap or a contradiction.
        """
        new = self.line.commit(commitment.position, commitment.token_ids)
        decided(self._proposals(new), self._calibrations)
        self._follow(new)
        if self._constraint is not None and new:
            self._constraint.commit(new)
        growth = self.tree.commit(new)
        self._unsent = [node for node in self._unsent if node.state is LIVE]
        self._verify_seconds = commitment.verify_ms / 1000.0
        if self._automatic and commitment.probability_min > 0.0:
            self._log_floor = _log_floor(commitment.probability_min, self._verify_seconds)
        return growth

    @property
    def num_sent_live(self) -> int:
        """How many nodes that were sent are still undecided."""
        return self.tree.num_live - sum(node.state is LIVE for node in self._unsent)

    def best(self) -> float | None:
        """Logarithm of the chance that the most promising node to expand is reached; None if there is none to expand.

        None when the credit is used up, the line's end is reached, or nothing is left that is worth it: a node must be
        worth scoring in the round after the next one, if that starts from an outcome just worth scoring. So its chance
        is at least the square of the smallest one worth scoring, which commits carry.
        """
        root = self.tree.root
        if self.tree.num_live + self._frontier.num_reserved + self.width > self._max_run_ahead:
            return None
        if root.position + 1 >= self._max_length:
            return None
        log_worth = self._frontier.best(root)
        return log_worth if log_worth is not None and log_worth >= self._log_floor else None

    def take(self) -> Node:
        """The node that `best` spoke of. It must be given to `expand` or `postpone`.

        With a parallel draft model it may be one that was taken before: that is one more mask token in a chain below
        it, whose row proposes for one place more.
        """
        return self._frontier.take(self.tree.root)

    def postpone(self, nodes: Iterable[Node]) -> None:
        """Gives nodes that were taken but not expanded back to the frontier, each as often as it was taken."""
        for node in nodes:
            self._frontier.postpone(self.tree.root, node)

    def expand(
        self,
        parent: Node,
        token_ids: Sequence[int],
        confidences: Sequence[float],
        ahead: Sequence[tuple[Sequence[int], Sequence[float]]] = (),
    ) -> None:
        """Adds what was proposed below `parent`, which was taken, best first.

        `confidences` are the proposer's, one for each: a draft model's are the margins of `Sampler.propose`. Proposals
        not worth drafting are left out when the width is automatic. `ahead` are the same of each mask token below it.
        """
        width = self.width
        self._frontier.settle(parent)
        own = self._binned(token_ids[:width], confidences)
        if isinstance(self._frontier, MaskChains) and (ahead or parent.proposals is not None):
            rows = [own]
            for mask_depth, (ahead_ids, ahead_confidences) in enumerate(ahead, 1):
                rows.append(self._binned(ahead_ids[:width], ahead_confidences, mask_depth))
            self._grow(parent, rows)
            self._frontier.push_below(parent)
            return
        parent.proposals = own
        log_acceptance = self._calibrations[0].log_acceptance
        found = {token_id: log_acceptance(its_bin) for token_id, its_bin in own}
        children: list[Node] = []
        floor = self._log_floor + self.tree.root.path_log_prob - parent.path_log_prob
        for token_id in sorted(found, key=found.__getitem__, reverse=True):
            if found[token_id] < floor:
                break
            child = self.tree.attach(parent, token_id, found[token_id])
            if child is not None:
                self._unsent.append(child)
                children.append(child)
        for child in children:
            last = self._with_forced(child)
            if self._has_place(last):
                self._frontier.push(last)

    def outlook(self, most: int) -> Outlook | None:
        """What the next levels follow from, with up to `most` nodes; None if more than the draft model has a say."""
        root, frontier = self.tree.root, self._frontier
        if root.proposals is None or not isinstance(frontier, LikeliestFirst):
            return None
        if self.needs_path or self._expands is not everywhere:
            return None
        return Outlook(
            root,
            frontier.likeliest(most),
            self.width,
            self._max_run_ahead - self.tree.num_live - frontier.num_reserved,
            self._max_length,
            self._log_floor,
            self._calibrations[0].log_acceptances,
        )

    def expand_untaken(self, node: Node, token_ids: Sequence[int], confidences: Sequence[float]) -> None:
        """Adds what was proposed below a node of the outlook, or below one that was added since; see `expand`."""
        self._frontier.num_reserved += self.width
        self.expand(node, token_ids, confidences)

    def _grow(self, parent: Node, rows: Sequence[Proposals]) -> None:
        """Adds the likeliest paths through `rows`, as many nodes as were reserved: for each mask token one."""
        log_floor = self._log_floor + self.tree.root.path_log_prob
        bounds = Bounds(self.width + len(rows) - 1, log_floor, self._allows)
        new = grow(self.tree, parent, rows, self._calibrations[0].log_acceptance, bounds)
        self._unsent += new
        for node in new:
            self._with_forced(node)

    def _allows(self, node: Node, token_id: int) -> bool:
        root, constraint = self.tree.root, self._constraint
        if constraint is None or (node is not root and node.state is not LIVE):
            return True
        return constraint.allows([*path_tokens(root, node), token_id])

    def _has_place(self, node: Node, num_masks: int = 0) -> bool:
        """Whether what follows `node`, and then so many mask tokens, may be drafted."""
        return node.position + num_masks + 1 < self._max_length and self._expands(node)

    def _with_forced(self, node: Node) -> Node:
        """Adds what the constraint forces below `node`, as far as there is credit: that takes no step. Returns the last
        of it."""
        root, constraint = self.tree.root, self._constraint
        while constraint is not None and self.tree.num_live + self._frontier.num_reserved < self._max_run_ahead:
            if node.position + 1 >= self._max_length or node.children:
                break
            token_id = constraint.forced(path_tokens(root, node))
            child = None if token_id is None else self.tree.attach(node, token_id, _CERTAIN)
            if child is None:
                break
            node.proposals, node.mask_depth = (), 0
            self._unsent.append(child)
            node = child
        return node

    def is_window_due(self, now: float, idle: bool) -> bool:
        """Whether what has not been sent should be sent now; `idle` says that no step of this session follows."""
        if not self._unsent:
            return False
        if idle or now - self._last_sent >= COALESCE_SHARE * self._verify_seconds:
            return True
        root_log_prob, gain = self.tree.root.path_log_prob, 0.0
        for node in self._unsent:
            gain += math.exp(node.path_log_prob - root_log_prob)
            if gain >= WINDOW_GAIN_MIN:
                return True
        return False

    def num_levels_unsent(self, num_nodes: int, level_seconds: float, now: float) -> int:
        """How many levels, each over so many nodes and of so many seconds, may follow before a window is due; one at
        least, as that is not known before. What a level adds is as likely at most as what it expands."""
        best = self.best()
        if best is None:
            return EXPANSIONS_MAX
        root_log_prob = self.tree.root.path_log_prob
        gain = sum(math.exp(node.path_log_prob - root_log_prob) for node in self._unsent)
        num_by_gain = (WINDOW_GAIN_MIN - gain) / (num_nodes * math.exp(best))
        num_by_time = (self._last_sent + COALESCE_SHARE * self._verify_seconds - now) / (level_seconds or math.inf)
        return max(int(min(num_by_gain, num_by_time)), 1)

    def take_window(self, draft_ms: float, now: float = 0.0) -> DraftWindow | None:
        """What has not been sent yet, or None."""
        unsent, self._unsent = self._unsent, []
        self._last_sent = now
        return self._outbound.window(self.tree, unsent, draft_ms)

    def _proposals(self, token_ids: Iterable[int]) -> Iterator[tuple[int, Sequence[tuple[int, int]]]]:
        """What was proposed for the places that `token_ids` decide, as far as that goes."""
        node: Node | None = self.tree.root
        for token_id in token_ids:
            if node is None:
                return
            yield token_id, node.proposals or ()
            node = node.children.get(token_id)

    @property
    def num_uncomputed(self) -> int:
        """How many committed tokens a parallel draft model has to be fed before the one at the line's end: guesses of
        one pass need not be fed to be accepted."""
        root = self.tree.root
        return 0 if root.proposals is not None and root.mask_depth == 0 else self._num_uncomputed

    def _follow(self, token_ids: Iterable[int]) -> None:
        """Learns how far ahead the passes saw what `token_ids` decide, and which of them were fed."""
        if self._foresight is None:
            return
        places: list[tuple[int, bool]] = []
        node: Node | None = self.tree.root
        for token_id in token_ids:
            is_fed = node is not None and node.proposals is not None and node.mask_depth == 0
            self._num_uncomputed = 0 if is_fed else self._num_uncomputed + 1
            if node is None:
                continue
            if node.proposals:
                places.append((node.mask_depth, token_id in node.children))
            node = node.children.get(token_id)
        self._foresight.observe(places)


def _log_floor(scoring_probability: float, verify_seconds: float) -> float:
    """Logarithm of the chance from which a node is drafted; see `DraftSession.best`.

    A node must promise as much of a verify step's time, which one token is worth, as its handling takes, too.
    """
    handling = NODE_SECONDS / verify_seconds if verify_seconds > 0.0 else 0.0
    return math.log(min(max(scoring_probability**2, handling, 1e-6), 1.0))
