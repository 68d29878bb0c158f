"""When rivals' verifiers start a round, and with what: rules of published systems, for comparison.

Production knows none of them. Each verifies a chain, and bounds how far ahead the drafter may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from outrider.core.protocol.line import Line
from outrider.core.protocol.tree import Node, SpeculationTree


class Mirror(Protocol):
    """What a verifier knows of a session."""

    @property
    def line(self) -> Line: ...

    @property
    def tree(self) -> SpeculationTree: ...

    @property
    def guessed_length(self) -> int:
        """Length of the line when a guess of its last token came late, but was right."""
        ...


class Rule(Protocol):
    """One session's rule."""

    def next_round(self, session: Mirror) -> list[Node] | None:
        """The drafts that the next round scores, or None: wait for the next event. Asked after each one."""
        ...


class InTurn:
    """Drafter and verifier in turn (Leviathan, Kalman, Matias, arXiv 2211.17192): a round waits for all its drafts.

    With credit for as many drafts the drafter rests while the verifier works. Both read the prompt at the same time,
    which is more than devices in turn could do.
    """

    def __init__(self, lookahead: int, max_length: int) -> None:
        self._lookahead = lookahead
        self._max_length = max_length

    def next_round(self, session: Mirror) -> list[Node] | None:
        drafts = _chain(session.tree, self._lookahead, self._max_length)
        if session.line.num_generated_tokens == 0 or len(drafts) >= min(
            self._lookahead, _room(session, self._max_length)
        ):
            return drafts
        return None


class Amusd:
    """AMUSD (arXiv 2410.17375): the drafter never rests, and a round takes all there is once `num_drafts` drafts wait.

    The authors' code waits for 2. Their drafter starts after the target's first token; this one does not wait for it.
    """

    def __init__(self, num_drafts: int, max_length: int) -> None:
        self._num_drafts = num_drafts
        self._max_length = max_length

    def next_round(self, session: Mirror) -> list[Node] | None:
        drafts = _chain(session.tree, self._max_length, self._max_length)
        if session.line.num_generated_tokens == 0 or len(drafts) >= min(
            self._num_drafts, _room(session, self._max_length)
        ):
            return drafts
        return None


class Pearl:
    """PEARL (arXiv 2408.11850) with windows of `window` drafts.

    After a rejection the verifier scores nothing but the last token while a window is drafted, which tests the
    window's first draft ("pre-verify"). If that one stands, the rest of the window is scored while the next one is
    drafted ("post-verify"), and so on while all drafts stand. Credit for two windows, less the one token that every
    verdict adds, keeps the drafter at most one window ahead.
    """

    def __init__(self, window: int, max_length: int) -> None:
        self._window = window
        self._max_length = max_length
        self._num_line_tokens = 0
        self._num_drafts = 0

    def next_round(self, session: Mirror) -> list[Node] | None:
        if len(session.line) != self._num_line_tokens:
            self._num_line_tokens = len(session.line)
            self._num_drafts = self._window - 1 if _was_guessed(session) else 0
        drafts = _chain(session.tree, self._num_drafts, self._max_length)
        return drafts if len(drafts) >= min(self._num_drafts, _room(session, self._max_length)) else None


class RuleMaker(NamedTuple):
    """How a rule is made from its one parameter."""

    make: Callable[[int, int], Rule]
    """A session's rule, from the parameter and the longest that the session's line may grow."""
    credit: Callable[[int], int]
    """How many drafts the drafter may be ahead."""


FREE_CREDIT = 64
"""Credit of a drafter that has no bound: at an acceptance of 0.9 a chain stands so far with a chance of one in a
thousand."""

RULES: Mapping[str, RuleMaker] = {
    "synchronous": RuleMaker(InTurn, lambda lookahead: lookahead),
    "amusd": RuleMaker(Amusd, lambda num_drafts: FREE_CREDIT),
    "pearl": RuleMaker(Pearl, lambda window: 2 * window - 1),
}


def _chain(tree: SpeculationTree, limit: int, max_length: int) -> list[Node]:
    """The first guesses below the root, at most `limit`, but for one at the line's last position.

    The token there comes with its parent's row.
    """
    drafts: list[Node] = []
    node = tree.root
    while node.children and len(drafts) < limit and node.position + 2 < max_length:
        node = next(iter(node.children.values()))
        drafts.append(node)
    return drafts


def _was_guessed(session: Mirror) -> bool:
    """Whether the last token was among the guesses.

    If it was when it was decided, it has a chance below 1; a token that was none has no chance of its own. A guess that
    came while the step ran finds its place decided.
    """
    tree = session.tree
    before = tree.committed(tree.root.position - 1)
    was_node = before is not None and tree.root.path_log_prob < before.path_log_prob
    return was_node or session.guessed_length == len(session.line)


def _room(session: Mirror, max_length: int) -> int:
    """How long a chain the line still has room for."""
    return max(0, max_length - 2 - session.tree.root.position)
