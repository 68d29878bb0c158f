"""Policies that decide otherwise than production does: by another system's rule, or with one feature off."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from bench.rivals.modes import PADDED, PolicyName
from bench.rivals.rules import RULES, Rule
from bench.rivals.unchosen import all_that_may
from outrider.core.estimate.rhythm import Rhythm
from outrider.core.protocol.line import Line
from outrider.core.protocol.naming import Grafted
from outrider.core.protocol.tree import Node, SpeculationTree
from outrider.core.schedule.policy import DraftPolicy, ExpectedGain, VerifyPolicy
from outrider.core.verify.draft_wait import AT_ONCE, Wait
from outrider.core.verify.selection import Candidates
from outrider.core.verify.session import VerifySession

WAIT_MAX = 60.0
"""A rule waits for drafts and not for time; should the drafter be gone, the round goes after this many seconds."""


class Policy(NamedTuple):
    """What a mode hands to both schedulers."""

    verify: VerifyPolicy
    draft: DraftPolicy
    pads: bool = False
    """Whether the verifier pads its passes; see `padding.py`."""


def policy_of(name: PolicyName | None) -> Policy:
    """The policy of that name, production's where there is none. What it learns is its own.

    A name is a rule of `rules.py` with its parameter, or an ablation, or padding (with a parameter, of drafting in
    turn); the list that JSON makes of it will do. Raises KeyError for a name that is none of these.
    """
    return _named(*name) if name else Policy(VerifyPolicy(), DraftPolicy())


def _named(name: str, parameter: int) -> Policy:
    policy = policy_of(None)
    if name == PADDED:
        return (_named("synchronous", parameter) if parameter else policy)._replace(pads=True)
    if name not in RULES:
        ABLATIONS[name](policy)
        return policy
    rule = RULES[name]
    _choose_all(policy)
    policy.verify.looks_up = False
    policy.verify.rounds = lambda opening: RuledRounds(rule.make(parameter, opening.max_length))
    policy.draft.opening = lambda opening: replace(opening, tree_width=1, max_run_ahead=rule.credit(parameter))
    policy.draft.sends_at_once = True
    return policy


class _Mirror(NamedTuple):
    """See `rules.Mirror`."""

    line: Line
    tree: SpeculationTree
    guessed_length: int


class RuledRounds:
    """Goes when the rule says so, with as many drafts as the rule names."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._num_drafts = 0
        self._guessed_length = 0

    def observe(self, session: VerifySession, grafted: Grafted) -> None:
        """Notes that a draft came late, but was right."""
        if grafted.num_known:
            self._guessed_length = len(session.line)

    def wait(self, session: VerifySession, now: float, num_beside: int) -> Wait:
        """Not at all, or for the next event."""
        drafts = self._rule.next_round(_Mirror(session.line, session.tree, self._guessed_length))
        self._num_drafts = len(drafts or ())
        return Wait(WAIT_MAX, WAIT_MAX, math.inf) if drafts is None else AT_ONCE

    def candidates(self, session: VerifySession) -> Candidates:
        """The first of the chain."""
        return session.candidates._replace(limit=self._num_drafts)


class HastyRounds(ExpectedGain):
    """Never waits for drafts."""

    def wait(self, session: VerifySession, now: float, num_beside: int) -> Wait:
        """Not at all."""
        return AT_ONCE


class Unheard(Rhythm):
    """Says that any moment matters, so that what is worth a message is sent at once."""

    def chance(self, now: float, seconds: float) -> float:
        """Always certain."""
        return 1.0


def _is_first_guess(node: Node) -> bool:
    return node.parent is None or next(iter(node.parent.children.values())) is node


def _never_wait(policy: Policy) -> None:
    policy.verify.rounds = lambda opening: HastyRounds()


def _choose_all(policy: Policy) -> None:
    policy.verify.select = all_that_may


def _look_nothing_up(policy: Policy) -> None:
    policy.verify.looks_up = False


def _follow_first_guesses(policy: Policy) -> None:
    """Below each node's first guess alone: the others stay leaves, and no outcome but the likeliest is prepared."""
    policy.draft.expands = _is_first_guess


def _hear_no_rhythm(policy: Policy) -> None:
    policy.draft.rhythm = Unheard


ABLATIONS: dict[str, Callable[[Policy], None]] = {
    "no_wait": _never_wait,
    "no_choice": _choose_all,
    "no_ngram": _look_nothing_up,
    "no_outcomes": _follow_first_guesses,
    "no_rhythm": _hear_no_rhythm,
}
"""What each takes away from production's policy."""
