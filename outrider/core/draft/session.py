"""Draft sessions: where the drafter should look next, over all of them, and what each has to tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat

from outrider.core.draft.estimates import DraftEstimates
from outrider.core.draft.frontier import Frontier, LikeliestFirst
from outrider.core.draft.lattice import Bounds, Proposals, grow
from outrider.core.draft.mask_chains import MaskChains
from outrider.core.draft.outlook import Outlook
from outrider.core.draft.unsent import Unsent
from outrider.core.estimate.calibration import decided
from outrider.core.estimate.foresight import Foresight
from outrider.core.estimate.rhythm import Rhythm
from outrider.core.propose.constraint import Constraint
from outrider.core.protocol.line import Line
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow
from outrider.core.protocol.tree import LIVE, Growth, Node, SpeculationTree, path_tokens
from outrider.core.protocol.validation import AUTOMATIC_WIDTH_MAX

NODE_SECONDS = 12e-6
"""What a published node costs: drafter, coordinator and verifier each add it to a mirror, name it, sort it and drop it.
Between 8 and 14 microseconds over all three in runs of the sessions without forward passes."""

_SCORING_PROBABILITY_PRIOR = 0.05
"""Chance that makes scoring a guess worth its time, until the first commit tells: t(8) / t(1) is 1.2 for the
demonstration target, and a round commits two tokens: 2 * 0.2 / 8."""


NODES_BEFORE_FIRST_COMMIT_MAX = 64
"""Most nodes of a session before its first commit. While the target prefills there is time for any number, but the
round that follows scores the likeliest few; and where both share cores, each level takes time from that prefill."""

_CERTAIN = math.log(0.999)
"""What is claimed of a token that a constraint forces: as much as is ever learned of a guess."""


def everywhere(node: Node) -> bool:
    """What follows any node may be drafted."""
    return True


class DraftSession:
    """One session's line and tree as the drafter sees them. All times are in seconds, by any clock that only rises."""

    def __init__(
        self,
        opening: DraftOpen,
        estimates: DraftEstimates | None = None,
        *,
        expands: Callable[[Node], bool] = everywhere,
        rhythm: Callable[[], Rhythm] = Rhythm,
        constraint: Constraint | None = None,
    ) -> None:
        """What follows a new node may be drafted if `expands` says so. `rhythm` makes what learns when rounds begin.
        `constraint` has followed the line."""
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
        self._num_nodes_max = min(opening.max_run_ahead, NODES_BEFORE_FIRST_COMMIT_MAX)
        """Most live nodes for now."""
        self._max_length = opening.max_length
        self._foresight: Foresight | None = None
        self._frontier: Frontier = LikeliestFirst(self.width)
        if estimates.num_positions > 1:
            self._foresight = estimates.foresight(greedy=greedy).for_session()
            self._frontier = MaskChains(self.width, self._foresight, self._has_place)
        self._num_uncomputed = 0
        self._unsent = Unsent(self.tree)
        self._rhythm = rhythm()
        self._log_floor = _log_floor(_SCORING_PROBABILITY_PRIOR, 0.0) if self._automatic else -math.inf

    def commit(self, commitment: Commitment, now: float = 0.0) -> Growth:
        """Moves the line and the tree along, at `now`. Applying it twice changes nothing.

        Raises ProtocolViolationError for a gap or a contradiction.
        """
        new = self.line.commit(commitment.position, commitment.token_ids)
        if new:
            self._num_nodes_max = self._max_run_ahead
        decided(self._proposals(new), self._calibrations)
        self._follow(new)
        if self._constraint is not None and new:
            self._constraint.commit(new)
        growth = self.tree.commit(new)
        self._unsent.sweep()
        cutoff, verify_seconds = commitment.cutoff_ms / 1000.0, commitment.verify_ms / 1000.0
        self._rhythm.observe(cutoff, verify_seconds, len(new), now)
        if self._automatic and commitment.probability_min > 0.0:
            self._log_floor = _log_floor(commitment.probability_min, verify_seconds)
        return growth

    @property
    def num_sent_live(self) -> int:
        """How many nodes that were sent are still undecided."""
        return self.tree.num_live - self._unsent.num_live

    def best(self) -> float | None:
        """Logarithm of the chance that the most promising node to expand is reached; None if there is none to expand.

        None when the credit is used up (before the first commit, as much of it as may be used), when the line's end is
        reached, or when nothing is left that is worth it: a node must be worth scoring in the round after the next one,
        if that starts from an outcome just worth scoring. So its chance is at least the square of the smallest one
        worth scoring, which commits carry.
        """
        root = self.tree.root
        if self.tree.num_live + self._frontier.num_reserved + self.width > self._num_nodes_max:
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
        for child in self._attach(parent, own):
            last = self._with_forced(child)
            if self._has_place(last):
                self._frontier.push(last)

    def graft(self, parent: Node, proposals: Proposals) -> None:
        """Adds what was proposed, with its bins, below a node of the outlook, or below one that was added since; see
        `expand`."""
        children = self._attach(parent, proposals)
        if parent.position + 2 < self._max_length:
            for child in children:
                self._frontier.push(child)

    def _attach(self, parent: Node, proposals: Proposals) -> list[Node]:
        """Adds those of the proposals that are worth drafting, the likeliest first, and returns their nodes."""
        parent.proposals = proposals
        log_acceptance = self._calibrations[0].log_acceptance
        floor = self._log_floor + self.tree.root.path_log_prob - parent.path_log_prob
        found = {token_id: worth for token_id, its_bin in proposals if (worth := log_acceptance(its_bin)) >= floor}
        children: list[Node] = []
        for token_id in sorted(found, key=found.__getitem__, reverse=True):
            child = self.tree.attach(parent, token_id, found[token_id])
            if child is not None:
                children.append(child)
        self._unsent.add(children)
        return children

    def outlook(self, most: int) -> Outlook | None:
        """What the next levels follow from, with up to `most` nodes; None if more than the draft model has a say."""
        root, frontier = self.tree.root, self._frontier
        if not isinstance(frontier, LikeliestFirst) or self.needs_path or self._expands is not everywhere:
            return None
        return Outlook(
            root,
            [root] if root.proposals is None else frontier.likeliest(most),
            self.width,
            self._num_nodes_max - self.tree.num_live - frontier.num_reserved,
            self._max_length,
            self._log_floor,
            self._calibrations[0].log_acceptances,
        )

    def _grow(self, parent: Node, rows: Sequence[Proposals]) -> None:
        """Adds the likeliest paths through `rows`, as many nodes as were reserved: for each mask token one."""
        log_floor = self._log_floor + self.tree.root.path_log_prob
        bounds = Bounds(self.width + len(rows) - 1, log_floor, self._allows)
        new = grow(self.tree, parent, rows, self._calibrations[0].log_acceptance, bounds)
        self._unsent.add(new)
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
        while constraint is not None and self.tree.num_live + self._frontier.num_reserved < self._num_nodes_max:
            if node.position + 1 >= self._max_length or node.children:
                break
            token_id = constraint.forced(path_tokens(root, node))
            child = None if token_id is None else self.tree.attach(node, token_id, _CERTAIN)
            if child is None:
                break
            node.proposals, node.mask_depth = (), 0
            self._unsent.add([child])
            node = child
        return node

    def window_worth(self, now: float, seconds: float) -> float:
        """How many seconds it is expected to save that what has not been sent is sent now, not `seconds` later, which
        may be never. Infinite then, and if the verifier has nothing of this session: it may be waiting."""
        if not self._unsent:
            return 0.0
        if seconds == math.inf or not self.num_sent_live:
            return math.inf
        return self._unsent.gain * self._rhythm.chance(now, seconds) * self._rhythm.token_seconds

    def window_worths(self, now: float, seconds: float, num_nodes: int) -> Iterator[float]:
        """The same after one level more, after two, and so on, each over so many nodes and of so many seconds, if none
        is sent meanwhile. What a level adds is as likely at most as what it expands. Infinite if the verifier has
        nothing of this session: it may be waiting for what the first level brings."""
        best, gain, rhythm = self.best(), self._unsent.gain, self._rhythm
        if best is not None and not self.num_sent_live:
            yield from repeat(math.inf)
        added = 0.0 if best is None else num_nodes * math.exp(best)
        while True:
            now += seconds
            gain += added
            yield gain * rhythm.chance(now, seconds) * rhythm.token_seconds

    def take_window(self, draft_ms: float, now: float = 0.0) -> DraftWindow | None:
        """What has not been sent yet, or None."""
        return self._unsent.take_window(draft_ms, now)

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
