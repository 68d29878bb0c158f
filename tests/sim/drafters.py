"""Drafters of a simulated world: one that does its work, and one that sends whatever comes to its mind."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

from outrider.core.draft.estimates import DraftEstimates
from outrider.core.draft.session import DraftSession
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow
from outrider.core.protocol.naming import WINDOW_NODES_MAX
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node

from .scenario import Scenario
from .toys import place_after

DRAFT_MS = 1.0
"""What every honest window says that it took."""

BABBLE_WINDOWS_MAX = 30
"""After so many windows a babbler falls silent, so that every schedule ends."""


class HonestDrafter:
    """A draft session that is stepped as a draft service steps it: choose, forward pass, expand, now and then send."""

    def __init__(self, scenario: Scenario, rng: Random) -> None:
        self.session = DraftSession(
            DraftOpen(
                session_id="",
                token_ids=scenario.prompt,
                num_prompt_tokens=len(scenario.prompt),
                sampling=SamplingParams(),
                max_run_ahead=scenario.max_run_ahead,
                tree_width=0 if scenario.automatic_width else scenario.draft.width,
                max_length=scenario.max_length,
                vocab_size=scenario.target.vocab_size,
            ),
            DraftEstimates(num_positions=scenario.num_positions),
        )
        self._model = scenario.draft
        self._rng = rng
        self._in_hand: list[Node] = []
        self._resting = False

    def can_step(self) -> bool:
        """Whether there may be something to draft."""
        return not self._resting

    def step(self) -> DraftWindow | None:
        """Begins or ends a forward pass; commits may arrive in between. Returns a window when one is due."""
        if not self._in_hand:
            self._in_hand = take(self.session, self._rng.randint(1, 4))
            self._resting = not self._in_hand
            return self.flush() if self._resting else None
        nodes, self._in_hand = self._in_hand, []
        num_postponed = self._rng.choice((0, 0, 0, 1))
        self.session.postpone(nodes[:num_postponed])
        for node, num_rows in Counter(nodes[num_postponed:]).items():
            (token_ids, margins), *ahead = self._model.propose_ahead(place_after(self.session.line, node), num_rows)
            self.session.expand(node, token_ids, margins, ahead)
        return self.flush() if self._rng.random() < 0.5 else None

    def flush(self) -> DraftWindow | None:
        """Everything that has not been sent."""
        return self.session.take_window(DRAFT_MS)

    def on_commitment(self, commitment: Commitment) -> None:
        """The coordinator committed tokens."""
        growth = self.session.commit(commitment)
        assert growth.num_dropped >= 0
        self._resting = False


def take(session: DraftSession, limit: int) -> list[Node]:
    """At most `limit` nodes to expand, best first."""
    taken: list[Node] = []
    while len(taken) < limit and session.best() is not None:
        taken.append(session.take())
    return taken


class Babbler:
    """Sends windows of random content and listens to nothing."""

    def __init__(self, scenario: Scenario, rng: Random) -> None:
        self._scenario = scenario
        self._rng = rng
        self._num_left = BABBLE_WINDOWS_MAX
        self._next_id = 1

    def can_step(self) -> bool:
        """Whether it still has something to say."""
        return self._num_left > 0

    def step(self) -> DraftWindow:
        """The next window: mostly well-formed, with parents, places and tokens at random."""
        self._num_left -= 1
        rng = self._rng
        num_nodes = rng.randint(0, 6)
        window = DraftWindow(
            base=rng.randrange(self._scenario.max_length),
            first_id=self._next_id,
            parent_ids=[rng.randrange(node_id) for node_id in range(self._next_id, self._next_id + num_nodes)],
            token_ids=[rng.randrange(self._scenario.target.vocab_size) for _ in range(num_nodes)],
            log_probs=[-rng.random() for _ in range(num_nodes)],
        )
        self._next_id += num_nodes
        return break_window(window, rng) if num_nodes and rng.random() < 0.05 else window

    def flush(self) -> None:
        """Holds nothing back."""

    def on_commitment(self, commitment: Commitment) -> None:
        """Does not care."""


def break_window(window: DraftWindow, rng: Random) -> DraftWindow:
    """The same window, which is not empty, with one breach of the protocol."""
    return rng.choice(BREACHES)(window, rng)


def _with_token(token_id: int) -> Callable[[DraftWindow, Random], DraftWindow]:
    return lambda window, rng: replace(window, token_ids=_replaced(window.token_ids, token_id, rng))


def _with_log_prob(log_prob: float) -> Callable[[DraftWindow, Random], DraftWindow]:
    return lambda window, rng: replace(window, log_probs=_replaced(window.log_probs, log_prob, rng))


def _with_parent(offset: int) -> Callable[[DraftWindow, Random], DraftWindow]:
    def breach(window: DraftWindow, rng: Random) -> DraftWindow:
        index = rng.randrange(len(window))
        parent_ids = list(window.parent_ids)
        parent_ids[index] = window.first_id + index + offset
        return replace(window, parent_ids=parent_ids)

    return breach


def _oversized(window: DraftWindow, _: Random) -> DraftWindow:
    num_nodes = WINDOW_NODES_MAX + 1
    return replace(
        window, parent_ids=[0] * num_nodes, token_ids=[window.token_ids[0]] * num_nodes, log_probs=[-1.0] * num_nodes
    )


def _replaced(values: object, value: float, rng: Random) -> list[float]:
    changed = list(values)  # type: ignore[call-overload]
    changed[rng.randrange(len(changed))] = value
    return changed


BREACHES: tuple[Callable[[DraftWindow, Random], DraftWindow], ...] = (
    _with_token(-1),
    _with_token(2**31),
    _with_parent(0),
    _with_parent(1000),
    _with_log_prob(math.nan),
    _with_log_prob(math.inf),
    _with_log_prob(-math.inf),
    _with_log_prob(0.5),
    _oversized,
    lambda window, _: replace(window, first_id=window.first_id + 1000, parent_ids=[0] * len(window)),
    lambda window, _: replace(window, first_id=0, parent_ids=[0] * len(window)),
    lambda window, _: replace(window, base=10**6),
    lambda window, _: replace(window, token_ids=window.token_ids[:-1]),
    lambda window, _: replace(window, parent_ids=[*window.parent_ids, 0]),
    lambda window, _: replace(window, draft_ms=math.nan),
    lambda window, _: replace(window, draft_ms=-1.0),
)
"""One for each rule that a window must obey."""
