"""Recall: what recent answers to the same tenant go on with where the line's last tokens stand in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from outrider.core.propose.recent_answers import MATCH_TOKENS, Match, RecentAnswers
from outrider.core.protocol.line import Line
from outrider.core.protocol.tree import Node, path_tokens

_LOOK_BACK_TOKENS = 32
"""Last tokens of a line by which a place is found."""

_ASTRAY_TOKENS_MAX = 4
"""How many tokens in a row may differ before an answer is left: an edit has mostly put fewer in the place of others."""


class Recall:
    """A `Proposer` of one token at each place: what the answer has there that agrees furthest with what comes before.

    Where the line departs from the answer, the place moves on beside it, until the line's last tokens stand elsewhere.
    By Laplace's rule of succession the next token is promised with (n + 1) / (n + 2) after n tokens that agree, and
    with 1 / (n + 2) after n that do not.
    """

    __slots__ = ("_answers", "_guesses", "_line", "_match", "_matches", "_num_followed")

    def __init__(self, answers: RecentAnswers, line: Line) -> None:
        """`line` is looked for in `answers`, and at its end belongs to them."""
        self._answers = answers
        self._line = line
        self._match: Match | None = None
        """Of the line's end."""
        self._num_followed = len(line)
        """Tokens of the line that it was told of: of others it is not where nothing may be guessed."""
        self._matches: dict[Node, Match | None] = {}
        """Of paths that were asked about since the last commit."""
        self._guesses: dict[Node, Mapping[int, float]] = {}
        """What was answered since the last commit: other sessions' answers may come in meanwhile."""

    def prepare(self) -> bool:
        """See `Proposer.prepare`."""
        self._answers.read()
        return len(self._answers) > 0

    def propose(self, root: Node, node: Node) -> Mapping[int, float]:
        """See `Proposer.propose`."""
        guesses = self._guesses.get(node)
        if guesses is None:
            guesses = self._guesses[node] = self._guess(self._match_at(root, node))
        return guesses

    def commit(self, token_ids: Sequence[int]) -> None:
        """See `Proposer.commit`."""
        if self._num_followed == len(self._line) - len(token_ids):
            for token_id in token_ids:
                self._match = self._followed(self._match, token_id)
            self._num_followed = len(self._line)
        self._matches.clear()
        self._guesses.clear()

    def end(self) -> None:
        """The session ends: what it was answered is a recent answer."""
        self._answers.add(self._line.token_ids[self._line.num_prompt_tokens :])

    def _guess(self, match: Match | None) -> Mapping[int, float]:
        token_id = None if match is None else self._answers.token(match.position)
        if match is None or token_id is None:
            return {}
        return {token_id: (max(match.num_agreed, 0) + 1) / (abs(match.num_agreed) + 2)}

    def _followed(self, match: Match | None, token_id: int) -> Match | None:
        """The match one token on; None where the line has left the answer."""
        if match is None:
            return None
        position, num_agreed = match
        if self._answers.token(position) == token_id:
            return Match(position + 1, max(num_agreed, 0) + 1)
        return Match(position + 1, min(num_agreed, 0) - 1) if num_agreed > -_ASTRAY_TOKENS_MAX else None

    def _match_at(self, root: Node, node: Node) -> Match | None:
        if node is root:
            if self._num_followed < len(self._line):
                self._match, self._num_followed = None, len(self._line)
            self._match = self._surer(self._match, [])
            return self._match
        if node not in self._matches:
            assert node.parent is not None
            match = self._followed(self._match_at(root, node.parent), node.token_id)
            self._matches[node] = self._surer(match, path_tokens(root, node))
        return self._matches[node]

    def _surer(self, match: Match | None, path: Sequence[int]) -> Match | None:
        """The match of the line and then `path`, or the one that is found anew if that one agrees too little."""
        if match is not None and match.num_agreed >= MATCH_TOKENS:
            return match
        return self._answers.find([*self._line.token_ids[-_LOOK_BACK_TOKENS:], *path][-_LOOK_BACK_TOKENS:]) or match
