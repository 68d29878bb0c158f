"""What became of the guesses of one round, for those who ask: the tree that was at hand, and what the verdict
made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from outrider.core.coordinate.session import Emit, Session
from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import DraftWindow, Verdict
from outrider.core.protocol.tree import LIVE, Node
from outrider.core.protocol.validation import DRAFT_TOKENS_MAX, RUN_AHEAD_MAX

ROUND_NODES_MAX = RUN_AHEAD_MAX + DRAFT_TOKENS_MAX
"""Most nodes of a report: as many as can be live, and as many as a verifier can have looked up beside them."""

DRAFT_STEPS_MAX = 64
"""Most draft steps of a report, the newest. Between two verdicts a drafter makes some ten."""

NODE_CHARACTERS_MAX = 32
"""Longest text of a node: more than most tokens have, and a display has room for less."""


class NodeFate(Enum):
    """What a verdict made of a guess."""

    ACCEPTED = 1
    """Scored and accepted."""
    FORESEEN = 2
    """It is the token that the target added, so that the guesses below it stay good."""
    LIVE = 3
    """Still to be decided."""
    DROPPED = 4
    """Void: the target chose otherwise."""


class RoundNode(NamedTuple):
    """One guessed token. See `RoundNode` in generation.proto."""

    parent: int
    """Number of the node before it, counted from 1; 0 for the last token before the round."""
    token_id: int
    text: str
    log_prob: float
    prompt_lookup: bool
    scored: bool
    fate: NodeFate


class DraftStep(NamedTuple):
    """A window that a drafter sent."""

    at_ms: float
    draft_ms: float
    num_nodes: int
    drafter: int
    """Which of the request's drafters, in the order in which they were met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """The report of one round. See `Round` in generation.proto."""

    completion: int
    number: int
    position: int
    at_ms: float
    verify_ms: float
    wait_ms: float
    verifier: int
    nodes: tuple[RoundNode, ...]
    num_accepted_drafts: int
    num_stale_nodes: int
    rolled_back: bool
    draft_steps: tuple[DraftStep, ...]
    mode_reason: str


@dataclass(slots=True)
class _Guess:
    """A node of the tree, or one that was looked up, as it stood before the verdict."""

    parent: int
    token_id: int
    node: Node | None
    prompt_lookup: bool = False
    scored: bool = False


class _Before(NamedTuple):
    """The guesses at hand when a verdict came."""

    verdict: Verdict
    guesses: list[_Guess]
    numbers: dict[tuple[int, int], int]
    """Of each guess by its parent's number and its token."""


class RoundReporter:
    """Reports the rounds of one completion: tell it what comes, in order. All times are the caller's."""

    def __init__(self, completion: int, spell: Callable[[int], str]) -> None:
        """`spell` tells how a token reads alone."""
        self._completion = completion
        self._spell = spell
        self._num_rounds = 0
        self._num_stale_nodes = 0
        self._draft_steps: list[DraftStep] = []
        self._drafters: dict[str, int] = {}
        """Numbers of the drafters by their addresses, which no client is told."""
        self._verifiers: dict[str, int] = {}

    def on_window(self, drafter: str, window: DraftWindow, at_ms: float) -> None:
        """The drafter of that address sent a window, and the session took it."""
        number = self._drafters.setdefault(drafter, len(self._drafters))
        self._draft_steps.append(DraftStep(at_ms, window.draft_ms, len(window), number))
        del self._draft_steps[:-DRAFT_STEPS_MAX]

    def before(self, session: Session, verdict: Verdict) -> _Before:
        """What is at hand when a verdict has come, before the session hears of it.

        Raises ProtocolViolationError if the verdict tells of scored nodes that cannot be.
        """
        tree = session.tree
        guesses: list[_Guess] = []
        numbers: dict[tuple[int, int], int] = {}
        number_of = {tree.root: 0}
        for node in tree.live_nodes():
            assert node.parent is not None
            parent = number_of[node.parent]
            guesses.append(_Guess(parent, node.token_id, node))
            numbers[parent, node.token_id] = number_of[node] = len(guesses)
        if verdict.position == tree.root.position + 1:  # otherwise it was decided before, for another stream
            _mark_scored(guesses, numbers, verdict)
        return _Before(verdict, guesses, numbers)

    def after(self, session: Session, before: _Before, emit: Emit, verifier: str, at_ms: float) -> Round:
        """The report, when the session has committed the verdict of the verifier of that address."""
        verdict, guesses, numbers = before
        fates: dict[int, NodeFate] = {}
        number: int | None = 0
        for index, token_id in enumerate(emit.token_ids):
            number = None if number is None else numbers.get((number, token_id))
            if number is not None:
                fates[number] = NodeFate.ACCEPTED if index < emit.num_accepted else NodeFate.FORESEEN
        num_stale_nodes = session.statistics.num_stale_nodes
        found = Round(
            completion=self._completion,
            number=self._num_rounds,
            position=emit.position,
            at_ms=at_ms,
            verify_ms=_finite(verdict.verify_ms),
            wait_ms=_finite(verdict.wait_ms),
            verifier=self._verifiers.setdefault(verifier, len(self._verifiers)),
            nodes=tuple(self._node(guess, fates.get(each)) for each, guess in enumerate(guesses, 1)),
            num_accepted_drafts=max(emit.num_accepted - verdict.num_accepted_prompt_lookup, 0),
            num_stale_nodes=num_stale_nodes - self._num_stale_nodes,
            rolled_back=emit.rolled_back,
            draft_steps=tuple(self._draft_steps),
            mode_reason=session.mode_reason,
        )
        self._num_rounds += 1
        self._num_stale_nodes = num_stale_nodes
        self._draft_steps.clear()
        return found

    def _node(self, guess: _Guess, fate: NodeFate | None) -> RoundNode:
        node = guess.node
        if fate is None:
            fate = NodeFate.LIVE if node is not None and node.state is LIVE else NodeFate.DROPPED
        return RoundNode(
            parent=guess.parent,
            token_id=guess.token_id,
            text=self._spell(guess.token_id)[:NODE_CHARACTERS_MAX],
            log_prob=0.0 if node is None else node.log_prob,
            prompt_lookup=guess.prompt_lookup,
            scored=guess.scored,
            fate=fate,
        )


def _mark_scored(guesses: list[_Guess], numbers: dict[tuple[int, int], int], verdict: Verdict) -> None:
    """Marks what the verifier says it scored, and adds what it looked up."""
    parents, token_ids = verdict.scored
    if not parents and not token_ids:
        return
    if not len(parents) == len(token_ids) == verdict.num_draft_tokens <= DRAFT_TOKENS_MAX:
        raise ProtocolViolationError("a verdict names all draft tokens that it scored, or none")
    num_drafted = len(parents) - verdict.num_prompt_lookup
    number_of = [0]
    for index, (parent, token_id) in enumerate(zip(parents, token_ids, strict=True)):
        if not 0 <= parent < len(number_of):
            raise ProtocolViolationError("a verdict names parents before children")
        key = number_of[parent], token_id
        if key not in numbers:
            guesses.append(_Guess(*key, None))
            numbers[key] = len(guesses)
        guess = guesses[numbers[key] - 1]
        guess.scored = True
        guess.prompt_lookup = index >= num_drafted
        number_of.append(numbers[key])


def _finite(milliseconds: float) -> float:
    """What a peer measured, or 0 if that is no number."""
    return milliseconds if math.isfinite(milliseconds) else 0.0
