"""Predicted output: the caller's own guess of the text, followed as long as it is right and found again after that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from outrider.core.estimate.confidence import prediction_bin
from outrider.core.propose.alignment import Alignment, Place
from outrider.core.propose.ngram import extend, path_context
from outrider.core.protocol.line import Line
from outrider.core.protocol.tree import Node

_FOLLOWED_MAX = 16
"""Most tokens of a line that was written before that are followed in one round: half a millisecond."""


class Prediction:
    """A `Proposer` of one token at each place: what the prediction has there.

    By Laplace's rule of succession the next one is promised with (r + 1) / (r + 2) after r right ones in a row, and
    with 1 / (w + 2) after w wrong ones.
    """

    __slots__ = ("_alignment", "_line", "_num_followed", "_places")

    def __init__(self, prediction: Sequence[int], line: Line) -> None:
        """`prediction` is of what comes after the prompt of `line`, which may have come some way already."""
        self._alignment = Alignment(prediction)
        self._line = line
        self._num_followed = line.num_prompt_tokens
        self._places: dict[Node, Place] = {}
        """Of paths that were asked about since the last commit."""

    def prepare(self) -> bool:
        """See `Proposer.prepare`. Before it has followed all of the line there are no guesses."""
        end = min(self._num_followed + _FOLLOWED_MAX, len(self._line))
        self._follow(self._line.token_ids[self._num_followed : end])
        return self._num_followed == len(self._line)

    def propose(self, root: Node, node: Node) -> Mapping[int, float]:
        """See `Proposer.propose`."""
        return self._guess(self._place(root, node))

    def commit(self, token_ids: Sequence[int]) -> None:
        """See `Proposer.commit`."""
        if self._num_followed == len(self._line) - len(token_ids):
            self._follow(token_ids)

    def guesses(self, token_ids: Sequence[int]) -> Iterator[tuple[int, Sequence[tuple[int, int]]]]:
        """Each of the tokens that are about to be committed, and what the prediction has at its place, asked for or
        not: token ids with their bins."""
        if self._num_followed != len(self._line):
            return
        place, context = self._alignment.place, self._alignment.context
        for token_id in token_ids:
            yield token_id, [(guess, prediction_bin(chance)) for guess, chance in self._guess(place).items()]
            context = extend(context, token_id)
            place = self._alignment.after(place, token_id, context)

    def _guess(self, place: Place) -> Mapping[int, float]:
        token_id = self._alignment.expected(place)
        return {} if token_id is None else {token_id: (max(place.run, 0) + 1) / (abs(place.run) + 2)}

    def _place(self, root: Node, node: Node) -> Place:
        path: list[Node] = []
        while node is not root and node not in self._places:
            path.append(node)
            assert node.parent is not None
            node = node.parent
        place = self._alignment.place if node is root else self._places[node]
        for below in reversed(path):
            context = path_context(below, root, self._alignment.context)
            place = self._places[below] = self._alignment.after(place, below.token_id, context)
        return place

    def _follow(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            self._alignment.follow(token_id)
        self._num_followed += len(token_ids)
        self._places.clear()
