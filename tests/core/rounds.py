"""Verify sessions, and what it takes to play rounds with them."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.core.estimate.step_curve import StepCurve
from outrider.core.propose.constraint import Constraint
from outrider.core.propose.ngram import NgramTable
from outrider.core.propose.recent_answers import RecentAnswers
from outrider.core.protocol.messages import DraftWindow, VerifyOpen
from outrider.core.protocol.sampling import SamplingParams
from outrider.core.protocol.tree import Node
from outrider.core.verify.estimates import VerifyEstimates
from outrider.core.verify.selection import most_probable
from outrider.core.verify.session import VerifySession

EOS, STOP = 90, 91


def verify_session(
    *,
    max_draft_tokens: int = 8,
    max_length: int = 100,
    ignore_eos: bool = False,
    estimates: VerifyEstimates | None = None,
    line: Sequence[int] = (7, 8, 9),
    ngrams: bool = False,
    recent: RecentAnswers | None = None,
    constraint: Constraint | None = None,
    prediction: Sequence[int] = (),
) -> VerifySession:
    """A session at the end of `line`; with `ngrams` it has a table of it."""
    return VerifySession(
        VerifyOpen(
            session_id="s",
            token_ids=line,
            num_prompt_tokens=len(line),
            sampling=SamplingParams(),
            max_length=max_length,
            stop_token_ids=frozenset({STOP}),
            ignore_eos=ignore_eos,
            max_draft_tokens=max_draft_tokens,
            prediction_token_ids=prediction,
        ),
        vocab_size=100,
        eos_token_ids=[EOS],
        max_live_nodes=20,
        estimates=estimates,
        ngram_table=NgramTable if ngrams else None,
        recent=recent,
        constraint=constraint,
    )


def chain_window(*token_ids: int, first_id: int = 1, base: int = 2, log_prob: float = -0.1) -> DraftWindow:
    """A chain below the committed token at `base`, each of whose tokens is claimed to be right with that chance."""
    parent_ids = [0, *range(first_id, first_id + len(token_ids) - 1)][: len(token_ids)]
    return DraftWindow(base, first_id, parent_ids, token_ids, [log_prob] * len(token_ids))


def choose(session: VerifySession) -> list[Node]:
    """All that a round may score: with no step observed, time does not count."""
    return most_probable([session.candidates], StepCurve()).nodes[0]


def choices(session: VerifySession, nodes: list[Node], target: dict[tuple[int, ...], int]) -> list[int]:
    """What the target chooses after the root and after each node; `target` maps paths to its tokens, default 0."""
    paths: dict[int, tuple[int, ...]] = {id(session.tree.root): ()}
    for node in nodes:
        paths[id(node)] = (*paths[id(node.parent)], node.token_id)
    return [target.get(path, 0) for path in paths.values()]


def slow_verifier(
    *,
    coverage: float,
    first_draft: float,
    estimates: VerifyEstimates | None = None,
    line: Sequence[int] = (7, 8, 9),
    ngrams: bool = False,
    prediction: Sequence[int] = (),
) -> VerifySession:
    """After some experience: a step takes a second, drafts come `first_draft` later or keep coming, level by level."""
    estimates = estimates or VerifyEstimates()
    estimates.curve.observe(1, 1.0)
    _, draft_wait = estimates.of(greedy=True)
    for _ in range(20):
        draft_wait.observe_places([1.0] * round(10 * coverage) + [0.0] * (10 - round(10 * coverage)))
        draft_wait.observe_first_draft(first_draft)
        draft_wait.observe_levels(1, first_draft)
    session = verify_session(estimates=estimates, line=line, ngrams=ngrams, prediction=prediction)
    session.decide([], [1], now=10.0)
    return session
