"""Toy models: a target and a draft of it that are pure functions of a seed, so that every schedule replays from one."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple, Protocol

from outrider.core.protocol.line import Line
from outrider.core.protocol.messages import FinishReason
from outrider.core.protocol.tree import Node

EOS_TOKEN_ID = 0

_MASK = 2**64 - 1


class Place(NamedTuple):
    """All that a toy model looks at: the position of the token to choose and the two tokens before it."""

    position: int
    tail: tuple[int, int]


def place_after(line: Line, node: Node) -> Place:
    """The place that follows `node`, whose tree is rooted in `line`."""
    if node.parent is not None:
        previous = node.parent.token_id
    else:
        previous = line.token_ids[node.position - 1] if node.position else 0
    return Place(node.position + 1, (previous, node.token_id))


class Target(Protocol):
    """Whoever writes the text."""

    @property
    def seed(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def next_token(self, place: Place) -> int: ...


class ToyTarget(NamedTuple):
    """Chooses each token by a hash of its place."""

    seed: int
    vocab_size: int
    period: int = 0
    """If not 0, it looks at the last token alone and its position modulo this, so that its text soon repeats itself."""

    def next_token(self, place: Place) -> int:
        """The one right token at `place`."""
        if self.period:
            place = Place(place.position % self.period, (0, place.tail[1]))
        return _mix(self.seed, place) % self.vocab_size

    def decode_alone(
        self, prompt: list[int], max_length: int, stop_token_ids: frozenset[int], ignore_eos: bool
    ) -> tuple[list[int], FinishReason]:
        """What plain decoding writes after `prompt`, and why it ends."""
        line = list(prompt)
        while True:
            token_id = self.next_token(Place(len(line), (line[-2] if len(line) > 1 else 0, line[-1])))
            line.append(token_id)
            if token_id == EOS_TOKEN_ID and not ignore_eos:
                return line[len(prompt) :], FinishReason.EOS
            if token_id in stop_token_ids:
                return line[len(prompt) :], FinishReason.STOP_TOKEN
            if len(line) == max_length:
                return line[len(prompt) :], FinishReason.LENGTH


class ToyDraft(NamedTuple):
    """Proposes `width` tokens, among which the target's own stands with probability `accuracy`."""

    target: ToyTarget
    width: int
    accuracy: float

    def propose(self, place: Place) -> tuple[list[int], list[float]]:
        """Token ids, all different, and their margins, which say nothing of which one is right."""
        target_token_id = self.target.next_token(place)
        probability = _mix(~self.target.seed & _MASK, place)
        num_others = self.target.vocab_size - 1
        token_ids = [
            (target_token_id + 1 + (probability + rank) % num_others) % self.target.vocab_size
            for rank in range(self.width)
        ]
        if (probability >> 16) % 1024 < 1024 * self.accuracy:
            token_ids[(probability >> 32) % self.width] = target_token_id
        first = (probability >> 40) % 16 / 16
        return token_ids, [first, *(first + 0.5 * rank for rank in range(self.width - 1))]

    def propose_ahead(self, place: Place, num_places: int) -> list[tuple[list[int], list[float]]]:
        """The same for so many places in a row, as if each time its first guess stood there."""
        rows: list[tuple[list[int], list[float]]] = []
        for _ in range(num_places):
            rows.append(self.propose(place))
            place = Place(place.position + 1, (place.tail[1], rows[-1][0][0]))
        return rows


class TieredDraft(NamedTuple):
    """Proposes as many tokens as `coverage` has entries: the target's own is among the first k with `coverage[k - 1]`.

    The margins are those of scores that say how often each rank is right.
    """

    target: Target
    coverage: tuple[float, ...]

    def propose(self, place: Place) -> tuple[list[int], list[float]]:
        """Token ids, all different, and their margins."""
        target_token_id = self.target.next_token(place)
        probability = _mix(~self.target.seed & _MASK, place)
        num_others = self.target.vocab_size - 1
        token_ids = [
            (target_token_id + 1 + (probability + rank) % num_others) % self.target.vocab_size
            for rank in range(len(self.coverage))
        ]
        luck = (probability >> 16) % 65536 / 65536
        rank = next((rank for rank, covered in enumerate(self.coverage) if luck < covered), None)
        if rank is not None:
            token_ids[rank] = target_token_id
        shares = [max(after - before, 1e-6) for before, after in pairwise((0.0, *self.coverage))]
        margins = [math.log(shares[0] / share) for share in shares[1:]]
        return token_ids, [min(margins, default=math.inf), *margins]


def _mix(seed: int, place: Place) -> int:
    """A hash in the manner of splitmix64 (Steele, Lea, Flood 2014): good bits from few operations."""
    bits = seed
    for value in (place.position, *place.tail):
        bits = (bits + 0x9E3779B97F4A7C15 * (value + 1)) & _MASK
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        bits ^= bits >> 27
    return bits
