"""Sessions that decide otherwise than production does: by another system's rule, or with one feature off.

Each is production's own session with a few methods overridden, for a production worker to use in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from bench.rivals.modes import PADDED, PolicyName
from bench.rivals.rules import RULES
from outrider.core.draft.session import DraftEstimates, DraftSession
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.messages import DraftOpen, DraftWindow, VerifyOpen
from outrider.core.protocol.naming import Grafted
from outrider.core.protocol.tree import Node
from outrider.core.verify.draft_wait import AT_ONCE, Wait
from outrider.core.verify.selection import Candidates
from outrider.core.verify.session import VerifyEstimates, VerifySession

WAIT_MAX = 60.0
"""A rule waits for drafts and not for time; should the drafter be gone, the round goes after this many seconds."""


class FlatCurve(StepCurve):
    """Says that a step takes the same time with any number of tokens, so that everything at hand is worth scoring."""

    def seconds(self, num_tokens: int) -> float:
        """What a step of one token takes."""
        return super().seconds(1)


class Policy(NamedTuple):
    """What a mode puts in the place of production's own: makes of sessions, and what they learn into."""

    verify_session: type[VerifySession]
    draft_session: type[DraftSession]
    verify_estimates: VerifyEstimates
    draft_estimates: DraftEstimates
    pads: bool = False
    """Whether the verifier pads its passes; see `padding.py`."""


def production() -> Policy:
    """Everything as production has it."""
    return Policy(VerifySession, DraftSession, VerifyEstimates(), DraftEstimates())


def policy_of(name: PolicyName | None) -> Policy:
    """The policy of that name, production's where there is none. What it learns is its own.

    A name is a rule of `rules.py` with its parameter, or an ablation, or padding (with a parameter, of drafting in
    turn); the list that JSON makes of it will do. Raises KeyError for a name that is none of these.
    """
    return _named(*name) if name else production()


def _named(name: str, parameter: int) -> Policy:
    policy = production()
    if name == PADDED:
        return (_named("synchronous", parameter) if parameter else policy)._replace(pads=True)
    if name in RULES:
        policy.verify_estimates.curve = FlatCurve()
        return policy._replace(
            verify_session=_ruled(name, parameter), draft_session=_drafting_a_chain(RULES[name].credit(parameter))
        )
    return ABLATIONS[name](policy)


class UntaughtSession(VerifySession):
    """Looks nothing up."""

    def __init__(self, opening: VerifyOpen, **kwargs: Any) -> None:
        kwargs["ngrams"] = None
        super().__init__(opening, **kwargs)


def _ruled(name: str, parameter: int) -> type[VerifySession]:
    class RuledSession(UntaughtSession):
        """Goes when the rule says so, with what the rule names."""

        def __init__(self, opening: VerifyOpen, **kwargs: Any) -> None:
            super().__init__(opening, **kwargs)
            self._rule = RULES[name].make(parameter, opening.max_length)
            self._drafts: list[Node] = []
            self.guessed_length = 0
            """See `Mirror`."""

        def graft(self, window: DraftWindow, now: float = 0.0) -> Grafted:
            grafted = super().graft(window, now)
            if grafted.num_known:
                self.guessed_length = len(self.line)
            return grafted

        def wait(self, now: float, num_beside: int = 0) -> Wait:
            drafts = self._rule.next_round(self)
            self._drafts = drafts or []
            return Wait(WAIT_MAX, WAIT_MAX, math.inf) if drafts is None else AT_ONCE

        @property
        def candidates(self) -> Candidates:
            return super().candidates._replace(limit=len(self._drafts))

    return RuledSession


def _drafting_a_chain(credit: int) -> type[DraftSession]:
    class ChainSession(DraftSession):
        """Drafts a chain by the model alone, up to the credit that the rule gives, and sends each draft at once."""

        def __init__(self, opening: DraftOpen, estimates: DraftEstimates | None = None) -> None:
            super().__init__(replace(opening, tree_width=1, max_run_ahead=credit), estimates)

        def is_window_due(self, now: float, idle: bool) -> bool:
            return bool(self._unsent)

    return ChainSession


class HastySession(VerifySession):
    """Never waits for drafts."""

    def wait(self, now: float, num_beside: int = 0) -> Wait:
        return AT_ONCE


class TrunkSession(DraftSession):
    """Drafts on below each node's first guess alone: the others stay leaves, and no outcome but the likeliest is
    prepared."""

    def _push(self, node: Node) -> None:
        if node.parent is None or next(iter(node.parent.children.values())) is node:
            super()._push(node)


def _choosing_all(policy: Policy) -> Policy:
    policy.verify_estimates.curve = FlatCurve()
    return policy


ABLATIONS: dict[str, Callable[[Policy], Policy]] = {
    "no_wait": lambda policy: policy._replace(verify_session=HastySession),
    "no_choice": _choosing_all,
    "no_ngram": lambda policy: policy._replace(verify_session=UntaughtSession),
    "no_outcomes": lambda policy: policy._replace(draft_session=TrunkSession),
}
"""Production with one feature off."""
