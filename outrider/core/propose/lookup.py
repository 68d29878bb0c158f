"""Prompt lookup: what the line's own past says, from a table that reads a long line over several rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from outrider.core.propose.ngram import HISTORY_TOKENS_MAX
from outrider.core.protocol.line import Line
from outrider.core.protocol.tree import Node

READ_TOKENS_MAX = 512
"""Most tokens of a line that its table reads in one round, in a millisecond: after a long prompt the guesses come some
rounds later."""


class Ngrams(Protocol):
    """A table that one line fills. `NgramTable` defines what it answers; `outrider/lookup` does so in machine code."""

    def read(self, token_ids: Sequence[int]) -> None:
        """Appends tokens that nobody had to guess."""
        ...

    def commit(self, token_ids: Sequence[int]) -> None:
        """Appends tokens that were decided, and learns from each how far guesses can be trusted."""
        ...

    def after(self, root: Node, node: Node) -> Mapping[int, float]:
        """The probability of each token that may follow `node`; the line ends at `root`."""
        ...


class PromptLookup:
    """A `Proposer` by n-grams of the line and of what was counted beforehand."""

    __slots__ = ("_line", "_ngrams", "_num_read")

    def __init__(self, ngrams: Ngrams, line: Line) -> None:
        """`ngrams` is an empty table, for `line`."""
        self._ngrams = ngrams
        self._line = line
        self._num_read = max(len(line) - HISTORY_TOKENS_MAX, 0)

    def prepare(self) -> bool:
        """See `Proposer.prepare`. Before the table knows all of the line there are no guesses."""
        if self._num_read < len(self._line):
            token_ids = self._line.token_ids[self._num_read : self._num_read + READ_TOKENS_MAX]
            self._ngrams.read(token_ids)
            self._num_read += len(token_ids)
        return self._num_read == len(self._line)

    def propose(self, root: Node, node: Node) -> Mapping[int, float]:
        """See `Proposer.propose`."""
        return self._ngrams.after(root, node)

    def commit(self, token_ids: Sequence[int]) -> None:
        """See `Proposer.commit`."""
        if self._num_read == len(self._line) - len(token_ids):
            self._ngrams.commit(token_ids)
            self._num_read = len(self._line)
